"""Published files of LlamaGen's GPT, DiT and SiT. Oracle: their formulas, on weights made in their names."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from code_folders import write_codes
from published_formulas import Made, dit_output, lc_codes, llamagen_logits, vqgan_decode, vqgan_encode

from models import sample
from models.errors import UserError
from models.import_checkpoint import import_checkpoint
from models.networks.code_shape import CodeShape
from models.networks.gpt import GPTConfig, llamagen_b, llamagen_l, llamagen_xl, llamagen_xxl
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.diffusion import FlowConfig
from models.priors.draw import sampling_config
from models.published import Untold, llamagen_gpt, load
from models.sample import Sampler
from models.tokenizers.fingerprint import fingerprint
from models.train_prior import train
from models.training.checkpoint import find_checkpoint, read_weights
from models.training.config import StageConfig
from models.training.prior_run import PriorRun
from models.training.runs import load_codec, load_prior, load_prior_config

CODES, GRID = 16, (2, 3)
GPT: dict[str, Any] = {
    "layers": 2,
    "heads": 2,
    "width": 32,
    "num_codes": CODES,
    "num_classes": 3,
    "grid": GRID,
}
DIT: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "patch": 2, "num_classes": 3}
LATENT = torch.linspace(-1, 1, 2 * 8 * 4 * 4, dtype=torch.float64).view(2, 8, 4, 4).mul(9).sin()
LABELS = torch.tensor([1, 3])  # the last: no class


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VQGAN-LC's, two pixels per side of a token."""
    made, folder = Made(), tmp_path_factory.mktemp("tokenizer")
    lc_codes(made, CODES, 12, 8, deep=False)
    widths = (32, 32)
    vqgan_decode(made, vqgan_encode(made, torch.zeros(1, 3, 4, 4, dtype=torch.float64), widths, 32, 8), widths, 32)
    torch.save({"model": dict(made)}, folder / "lc.pth")
    import_checkpoint("vqgan_lc", folder / "lc.pth", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def llamagen() -> Made:
    made = Made()
    llamagen_logits(made, torch.zeros(1, 5, dtype=torch.int64), LABELS[:1], **GPT)
    return made


@pytest.mark.parametrize(
    "network", [llamagen_b(), llamagen_l(), llamagen_xl(), llamagen_xxl()], ids=["b", "l", "xl", "xxl"]
)
def test_the_sizes_of_llamagen_are_read_off_its_shapes(network: GPTConfig) -> None:
    codes, names = (
        CodeShape(num_codes=16384, grid=(16, 16), num_classes=1000),
        llamagen_gpt.weight_names(network.layers),
    )
    with torch.device("meta"):
        own = AutoregressivePrior(AutoregressiveConfig(network=network), codes).state_dict()
        published, found = llamagen_gpt.LAYOUT.read({names[ours]: own[ours] for ours in own}, Untold())
    assert found == names
    assert published.codes == codes
    assert published.prior.network == dataclasses.replace(network, prefix_rotation="zero")


def saved(made: Made, path: Path, key: str) -> Path:
    torch.save({key: dict(made), "opt": {"state": {}}, "args": argparse.Namespace(model="x")}, path)
    return path


def test_llamagen(llamagen: Made, tokenizer_run: Path, tmp_path: Path) -> None:
    path, run = saved(llamagen, tmp_path / "gpt.pt", "model"), tmp_path / "run"
    import_checkpoint("llamagen_gpt", path, run, tokenizer=tokenizer_run, heads=2, grid=GRID)
    codes = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    expected = llamagen_logits(llamagen, codes, LABELS, **GPT)
    for prior in (load("llamagen_gpt", path, Untold(heads=2, grid=GRID)), load_prior(run)):
        prior.double()
        with torch.no_grad():
            # the table of rotations is float32
            torch.testing.assert_close(prior.gpt.head(prior.gpt(codes, LABELS)), expected, atol=1e-5, rtol=1e-5)

    config = load_prior_config(run)
    assert config.shape.num_classes == 3
    codec = load_codec(tokenizer_run)
    sampler = Sampler(config, prior, codec, sampling_config(prior, temperature=0.0), classes=[1, 2])
    drawn = torch.empty(2, 0, dtype=torch.int64)
    for _ in range(6):
        following = llamagen_logits(llamagen, drawn, torch.tensor([1, 2]), **GPT)[:, -1].argmax(1, keepdim=True)
        drawn = torch.cat([drawn, following], dim=1)
    assert torch.equal(sampler.codes([0, 1]), drawn.view(2, *GRID))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("layout", ["dit", "sit"])
def test_dit_and_sit(layout: str, learned: bool, tokenizer_run: Path, tmp_path: Path) -> None:
    made, time = Made(), torch.tensor([0.25, 0.75]) if layout == "sit" else torch.tensor([7, 900])
    expected = dit_output(made, LATENT, time, LABELS, outputs=16 if learned else 8, **DIT)
    if layout == "sit":
        expected = expected[:, :8]  # the velocity
    path, run = saved(made, tmp_path / "x.pt", "ema"), tmp_path / "run"
    config = import_checkpoint(layout, path, run, tokenizer=tokenizer_run, heads=2)
    assert isinstance(config.prior.process, FlowConfig) == (layout == "sit")
    assert config.latent_scale == 1.0
    for prior in (load(layout, path, Untold(heads=2)), load_prior(run)):
        with torch.no_grad():
            found = prior.double().network(LATENT, time, LABELS)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["llamagen_gpt", "dit", "sit"])
def test_images_of_an_imported_prior(layout: str, llamagen: Made, tokenizer_run: Path, tmp_path: Path) -> None:
    made, options = llamagen, {"heads": 2}
    if layout == "llamagen_gpt":
        options["grid"] = GRID
    else:
        made = Made()
        dit_output(made, LATENT, torch.zeros(2), LABELS, outputs=16, **DIT)
    path = saved(made, tmp_path / "x.pt", "model" if layout == "llamagen_gpt" else "ema")
    import_checkpoint(layout, path, tmp_path / "run", tokenizer=tokenizer_run, **options)
    steps = None if layout == "llamagen_gpt" else 2
    sample.main(tmp_path / "run", tokenizer_run, tmp_path / "samples", count=2, steps=steps, guidance=2.0)
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 2
    import_checkpoint(layout, path, tmp_path / "unknown", **options)
    with pytest.raises(UserError, match=r"unknown: imported without a tokenizer; import it again with --tokenizer"):
        sample.main(tmp_path / "unknown", tokenizer_run, tmp_path / "more")


def test_training_goes_on_from_an_imported_prior(llamagen: Made, tokenizer_run: Path, tmp_path: Path) -> None:
    path, codes = (
        saved(llamagen, tmp_path / "gpt.pt", "model"),
        write_codes(tmp_path / "codes", shape=GRID, num_codes=16),
    )
    made_by = fingerprint(load_codec(tokenizer_run).tokenizer)
    for manifest in codes.glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"tokenizer": made_by}))
    known = import_checkpoint("llamagen_gpt", path, tmp_path / "known", tokenizer=tokenizer_run, heads=2, grid=GRID)
    import_checkpoint("llamagen_gpt", path, tmp_path / "unknown", heads=2, grid=GRID)

    def going_on(start: str) -> PriorRun:
        stage = StageConfig(steps=1, batch_size=2, start=str(tmp_path / start))
        return dataclasses.replace(known, data=f"codes:{codes}", stage=stage, codes=None)

    train(going_on("known"), out=tmp_path / "run", progress=False)
    first = read_weights(find_checkpoint(tmp_path / "run", 0))
    assert torch.equal(first["gpt.head.weight"], llamagen["output.weight"])
    with pytest.raises(
        UserError, match="unknown: imported without a tokenizer; import it again with --tokenizer RUN"
    ):
        train(going_on("unknown"), out=tmp_path / "other", progress=False)


def test_a_tokenizer_that_does_not_fit(llamagen: Made, tokenizer_run: Path, tmp_path: Path) -> None:
    made = Made()
    dit_output(made, LATENT[:, :4], torch.zeros(2), LABELS, outputs=4, **DIT)
    dit, gpt = saved(made, tmp_path / "dit.pt", "ema"), tmp_path / "gpt.pt"
    with pytest.raises(UserError, match="tokenizer: expected 4 latent channels as the prior has, got 8 in"):
        import_checkpoint("dit", dit, tmp_path / "run", tokenizer=tokenizer_run, heads=2)
    other = llamagen | {name: torch.ones(20, 32) for name in ("tok_embeddings.weight", "output.weight")}
    torch.save(other, gpt)
    with pytest.raises(UserError, match=r"tokenizer: expected \(20, 1\) codes and groups .* got \(16, 1\) in"):
        import_checkpoint("llamagen_gpt", gpt, tmp_path / "run", tokenizer=tokenizer_run, heads=2)
    assert not (tmp_path / "run").exists()


def test_other_files_are_refused_in_one_line(llamagen: Made, tmp_path: Path) -> None:
    made = Made()
    dit_output(made, LATENT, torch.zeros(2), LABELS, outputs=16, **DIT)

    def refused(layout: str, weights: dict[str, Any], message: str, untold: Untold) -> None:
        torch.save(dict(weights), tmp_path / "x.pt")
        with pytest.raises(UserError, match=message) as caught:
            load(layout, tmp_path / "x.pt", untold)
        assert "\n" not in str(caught.value)

    two = Untold(heads=2)
    refused("llamagen_gpt", llamagen, "heads: expected a number, as nothing published has a width of 32", Untold())
    refused("llamagen_gpt", llamagen, r"expected a multiple of 12 for 3 heads, got 32", Untold(heads=3))
    refused("llamagen_gpt", llamagen | {"cls_embedding.x": torch.ones(1)}, r"has unknown cls_embedding\.x", two)
    shared = {"layers.0.attention.wqkv.weight": torch.ones(64, 32)}  # keys of fewer heads
    refused("llamagen_gpt", llamagen | shared, r"wqkv\.weight: expected shape \[96, 32\], got \[64, 32\]", two)
    refused("llamagen_gpt", {}, r"no tok_embeddings\.weight", two)
    refused("dit", made | {"pos_embed": made["pos_embed"] + 0.1}, "pos_embed: expected the fixed sines", two)
    refused(
        "dit", made | {"pos_embed": made["pos_embed"][:, :3]}, r"pos_embed: expected shape \[1, side\^2, 32\]", two
    )
    refused("sit", made, "grid: expected none", Untold(heads=2, grid=(4, 4)))
    refused(
        "sit", {k: v for k, v in made.items() if k != "x_embedder.proj.bias"}, r"lacks x_embedder\.proj\.bias", two
    )
