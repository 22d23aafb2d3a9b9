"""Published files of VQGAN-LC and MGVQ. Oracle: their networks as formulas, on weights made in their names."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from published_formulas import Made, lc_codes, mgvq_decode, mgvq_encode, nearest, vqgan_decode, vqgan_encode
from torch.nn import functional as F

from models.errors import UserError
from models.import_checkpoint import import_checkpoint
from models.networks.dcae import DCAEConfig, DCAEDecoder, DCAEEncoder, dcae_f8, dcae_f16, dcae_f32
from models.published import Untold, load, mgvq
from models.training.runs import load_config, load_tokenizer

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
# not part of a tokenizer, and beside the weights of a training
BESIDE = {"discriminator.main.0.weight": torch.ones(2), "perceptual_loss.lin0.weight": torch.ones(1)}
TRAINING = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "opt_ae": {"state": {}}}


def check(layout: str, path: Path, run: Path, indices: torch.Tensor, image: torch.Tensor) -> None:
    """The file as a module and as a run, which commands take."""
    import_checkpoint(layout, path, run)
    for tokenizer in (load(layout, path), load_tokenizer(run)):
        with torch.no_grad():
            assert torch.equal(tokenizer.encode(IMAGES), indices)
            torch.testing.assert_close(tokenizer.decode(indices), image.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("deep", [False, True], ids=["linear", "mlp"])
def test_vqgan_lc(deep: bool, tmp_path: Path) -> None:
    made, widths = Made(), (32, 64)
    codes = lc_codes(made, 16, 12, 8, deep=deep)
    indices = nearest(vqgan_encode(made, IMAGES.double(), widths, 32, 8), codes)
    image = vqgan_decode(made, codes[indices].movedim(-1, 1), widths, 32)
    assert len(indices.unique()) > 2
    path = tmp_path / "vqgan_checkpoint-last.pth"
    torch.save({"state_dict": made | BESIDE, **TRAINING}, path)
    check("vqgan_lc", path, tmp_path / "run", indices, image)
    config = load_config(tmp_path / "run")
    assert config.quantizer.projector == ("mlp" if deep else "linear")
    assert config.network.attention_levels == (1,)
    features = load_tokenizer(tmp_path / "run").quantizer.table.features
    assert torch.equal(features, made["tok_embeddings.weight"])
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("depths", "decoder_depths"), [((0, 1, 1), (0, 2, 1)), ((1, 2, 1), (2, 1, 1))], ids=["half", "whole"]
)
def test_mgvq(depths: tuple[int, ...], decoder_depths: tuple[int, ...], tmp_path: Path) -> None:
    made, widths, groups = Made(), (16, 32, 64), 2
    z = mgvq_encode(made, IMAGES.double(), widths, depths, 8, groups)
    table = made("quantize.embedding.weight", 2 * 16, 4, std=1.0).unflatten(0, (groups, -1))
    books = F.normalize(table, dim=-1)
    parts = [
        nearest(F.normalize(part, dim=1), book) for part, book in zip(z.chunk(groups, dim=1), books, strict=True)
    ]
    indices = torch.stack(parts, dim=-1)
    quantized = torch.cat([book[part].movedim(-1, 1) for part, book in zip(parts, books, strict=True)], dim=1)
    image = mgvq_decode(made, quantized, widths, decoder_depths, groups)
    usage = torch.rand(groups, 16)
    path = tmp_path / "mgvq.pt"
    extra = {"quantize.embed_prob": usage, "quantize.codebook_used": torch.zeros(groups, 65536)}
    torch.save({"model": made | extra}, path)
    check("mgvq", path, tmp_path / "run", indices, image)
    assert load_config(tmp_path / "run").network == DCAEConfig(
        widths=widths, encoder_depths=depths, decoder_depths=decoder_depths, conv_stages=2, conv_groups=groups
    )
    assert torch.equal(load_tokenizer(tmp_path / "run").quantizer.table.usage, usage)


@pytest.mark.parametrize("network", [dcae_f8(), dcae_f16(), dcae_f32()], ids=["f8", "f16", "f32"])
def test_the_sizes_of_mgvq_are_read_off_its_shapes(network: DCAEConfig) -> None:
    network = dataclasses.replace(network, conv_groups=4)
    with torch.device("meta"):
        parts = torch.nn.ModuleDict({"encoder": DCAEEncoder(network, 32), "decoder": DCAEDecoder(network, 32)})
        own = parts.state_dict()
        own |= {"quantizer.table.weight": torch.empty(4 * 8192, 8), "quantizer.table.usage": torch.empty(4, 8192)}
        names = mgvq.weight_names(network)
        published, found = mgvq.LAYOUT.read({names[ours]: weight for ours, weight in own.items()}, Untold())
    assert found == names
    assert (published.network, published.quantizer.num_codes) == (network, 8192)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"

    def refused(layout: str, weights: Any, message: str) -> None:
        torch.save({"model": weights}, path)
        with pytest.raises(UserError, match=message) as caught:
            load(layout, path)
        assert "\n" not in str(caught.value)

    made = Made()
    codes = lc_codes(made, 4, 3, 8, deep=False)
    vqgan_decode(made, vqgan_encode(made, IMAGES.double(), (32,), 32, 8), (32,), 32)
    assert codes.shape == (4, 8)
    lc = dict(made)
    refused("vqgan_lc", lc | {"cluster_size": torch.ones(4)}, r"has unknown cluster_size \(1 names differ\)")
    lacking = {name: tensor for name, tensor in lc.items() if name != "codebook_projection.bias"}
    refused("vqgan_lc", lacking, r"lacks codebook_projection\.bias")
    refused("vqgan_lc", {k: v for k, v in lc.items() if "projection" not in k}, r"no codebook_projection\.weight")
    wide = {"codebook_projection.weight": torch.ones(768, 3), "codebook_projection.bias": torch.ones(768)}
    refused("vqgan_lc", lc | wide, "code_dim: expected another than 768")
    refused(
        "vqgan_lc", lc | {"tok_embeddings.weight": torch.ones(4, 5)}, r"projection\.weight: expected shape \[8, 5\]"
    )

    made = Made()
    widths = (16, 32, 64)
    mgvq_decode(made, mgvq_encode(made, IMAGES.double(), widths, (0, 1, 1), 8, 2), widths, (0, 1, 1), 2)
    made("quantize.embedding.weight", 6, 4)
    mgvq = made | {"quantize.embed_prob": torch.ones(2, 3)}
    torch.save({"model": mgvq}, path)
    load("mgvq", path)
    refused("mgvq", {}, r"no encoder\.stages\.1\.op_list\.0")
    refused(
        "mgvq", mgvq | {"quantize.embedding.weight": torch.ones(5, 4)}, "as many rows for each of 2 groups, got 5"
    )
    refused("mgvq", {k: v for k, v in mgvq.items() if "1.op_list.0" not in k}, "expected 3 numbers of blocks")
    refused("mgvq", mgvq | {"encoder.stages.2.op_list.0.pos": torch.ones(1)}, r"has unknown encoder\.stages\.2")
