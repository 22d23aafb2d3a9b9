"""Published checkpoints. Oracles: the packages with random weights; for LlamaGen taming's network, renamed."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import import_library
from safetensors.torch import save_file
from torch.nn import functional as F

from models.errors import UserError
from models.import_checkpoint import import_checkpoint
from models.published import load
from models.train_tokenizer import train
from models.training.checkpoint import save_config
from models.training.runs import load_config, load_tokenizer

SIZES: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 32,
    "double_z": False,
}


@pytest.fixture(scope="module")
def taming() -> Any:
    """Encoder, decoder, convolutions and codes of taming-transformers with random weights."""
    model = import_library("taming.modules.diffusionmodules.model")
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict(
        {
            "encoder": model.Encoder(**SIZES),
            "decoder": model.Decoder(**SIZES),
            "quant_conv": torch.nn.Conv2d(32, 8, 1),
            "post_quant_conv": torch.nn.Conv2d(8, 32, 1),
            "quantize": torch.nn.ModuleDict({"embedding": torch.nn.Embedding(16, 8)}),
        }
    ).eval()
    for parameter in parts.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return parts


def by_hand(parts: Any, images: torch.Tensor, *, cosine: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [B, h, w] and reconstruction, by the formulas."""
    with torch.no_grad():
        z = parts["quant_conv"](parts["encoder"](images)).movedim(1, -1)  # [B, h, w, D]
        book = parts["quantize"]["embedding"].weight
        if cosine:
            z, book = F.normalize(z, dim=-1), F.normalize(book, dim=-1)
        indices = torch.cdist(z.flatten(0, 2), book).argmin(1).view(z.shape[:3])
        return indices, parts["decoder"](parts["post_quant_conv"](book[indices].movedim(-1, 1)))


def llamagen_name(name: str) -> str:
    """A name of taming's as LlamaGen has it; two levels."""
    name = re.sub(r"^encoder\.down\.(\d)\.", r"encoder.conv_blocks.\1.", name)
    name = re.sub(r"^decoder\.up\.(\d)\.", lambda m: f"decoder.conv_blocks.{1 - int(m[1])}.", name)
    name = name.replace(".block.", ".res.")
    return name.replace("mid.block_1", "mid.0").replace("mid.attn_1", "mid.1").replace("mid.block_2", "mid.2")


@pytest.fixture(params=["taming", "llamagen_vq"])
def published(request: pytest.FixtureRequest, taming: Any, tmp_path: Path) -> tuple[str, Path]:
    state = taming.state_dict()
    path = tmp_path / "model.ckpt"
    if request.param == "taming":
        torch.save({"state_dict": state | {"loss.discriminator.x": torch.ones(2)}, "epoch": 3}, path)
    else:
        renamed = {llamagen_name(name): tensor for name, tensor in state.items()}
        torch.save({"model": renamed | {"quantize.codebook_used": torch.zeros(65536)}}, path)
    return request.param, path


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24).sin()


def test_a_run_of_a_published_file_gives_what_its_package_gives(
    published: tuple[str, Path], taming: Any, tmp_path: Path
) -> None:
    layout, path = published
    import_checkpoint(layout, path, tmp_path / "run")
    indices, image = by_hand(taming, IMAGES, cosine=layout == "llamagen_vq")
    for tokenizer in (load(layout, path), load_tokenizer(tmp_path / "run")):
        with torch.no_grad():
            assert torch.equal(tokenizer.encode(IMAGES), indices)
            torch.testing.assert_close(tokenizer.decode(indices), image, atol=1e-4, rtol=1e-4)
    assert load_config(tmp_path / "run").network.attention_levels == (1,)
    with pytest.raises(UserError, match="already holds a run"):
        import_checkpoint(layout, path, tmp_path / "run")


def test_training_starts_from_an_imported_run_and_resumes_it(
    published: tuple[str, Path], photo_folder: Path, tmp_path: Path
) -> None:
    config = import_checkpoint(*published, tmp_path / "run")
    stage = dataclasses.replace(config.stage, steps=1, batch_size=2, image_size=16, start=str(tmp_path / "run"))
    config = dataclasses.replace(config, stage=stage, data=str(photo_folder))
    train(config, out=tmp_path / "more", progress=False)
    save_config(tmp_path / "run", config)  # as if the folder had been made by a training of one step
    train(config, out=tmp_path / "run", resume=True, progress=False)
    first, second = (load_tokenizer(tmp_path / name).state_dict() for name in ("more", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.input.weight"], load(*published).state_dict()["encoder.input.weight"])


def test_a_vq_model_of_diffusers(tmp_path: Path) -> None:
    diffusers = import_library("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=32,
        num_vq_embeddings=16,
        vq_embed_dim=8,
    ).eval()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    tokenizer = load("diffusers_vq", path)
    with torch.no_grad():
        z = model.encode(IMAGES).latents
        _, _, (_, _, indices) = model.quantize(z)
        assert torch.equal(tokenizer.encode(IMAGES).flatten(), indices.flatten())
        torch.testing.assert_close(tokenizer(IMAGES).reconstruction, model.decode(z).sample, atol=1e-4, rtol=1e-4)


def test_other_files_are_refused_in_one_line(taming: Any, tmp_path: Path) -> None:
    state, path = taming.state_dict(), tmp_path / "x.ckpt"

    def refused(content: Any, message: str, layout: str = "taming") -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=message) as caught:
            load(layout, path)
        assert "\n" not in str(caught.value)

    refused({k: v for k, v in state.items() if k != "quant_conv.bias"}, r"lacks quant_conv\.bias \(1 names differ\)")
    refused(state | {"quant_conv.extra": torch.ones(1)}, r"has unknown quant_conv\.extra")
    refused(state | {"decoder.conv_out.bias": torch.ones(4)}, r"decoder\.conv_out\.bias: expected shape \[3\], got")
    refused({}, r"not a file of layout taming \(no encoder\.conv_in\.weight\)")
    refused([1, 2], "expected a state dict, got list")
    refused(state, "layout: expected one of taming, llamagen_vq, diffusers_vq, .*, got 'other'", "other")

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(UserError, match="missing, or not a file of tensors"):
        load("taming", path)
    assert not (tmp_path / "touched").exists()
    with pytest.raises(UserError, match="missing, or not a file of tensors"):
        load("taming", tmp_path / "absent.safetensors")
