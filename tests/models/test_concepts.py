"""SEMANTICIST's tokenizer and its training. Oracles: exact inverses, the formulas written out, one unbroken run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import import_library
from torch.nn import functional as F

from models.config_json import parse
from models.data.loader import Loader
from models.errors import UserError
from models.losses.alignment import feature_alignment
from models.networks.concept_dit import ConceptDiT, ConceptDiTConfig
from models.networks.dit import DiTConfig
from models.networks.vit import ConceptEncoder, ConceptEncoderConfig
from models.priors.diffusion import DDPMConfig, FlowConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.recipes import CONCEPTS
from models.tokenizers.concept import ConceptTokenizer, position_use
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.latent_space import (
    AutoencoderSpace,
    AutoencoderSpaceConfig,
    PatchSpace,
    PatchSpaceConfig,
    TokenizerSpaceConfig,
)
from models.train_tokenizer import train
from models.training.checkpoint import checkpoint_steps, find_checkpoint, read_state, read_weights
from models.training.concept_run import ConceptLossConfig, ConceptRun, ConceptStage, build_concepts
from models.training.concept_task import ConceptTask, powers_of_two
from models.training.config import OptimizerConfig
from models.training.run_log import read_metrics
from models.training.runs import load_concepts, load_config, load_tokenizer, open_space
from models.training.tokenizer_run import TokenizerRun, replace_stage

DIT = DiTConfig(layers=1, width=32, heads=4, patch_size=1)
FLAT = QuantizerConfig(codebook="online", num_codes=32, code_dim=8, anchor="random")
GROUPED = dataclasses.replace(FLAT, num_codes=16, groups=2)
LC = QuantizerConfig(codebook="frozen", num_codes=16, code_dim=8, features="tokens", init="matched")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(folder: Path | str, *stages: dict[str, Any], **changes: Any) -> ConceptRun:
    optimizer = OptimizerConfig(kind="adamw", lr=3e-3, schedule="constant", max_grad_norm=3.0)
    first, *then = [
        ConceptStage(**{"steps": 8, "batch_size": 4, "optimizer": optimizer, **stage}) for stage in stages or ({},)
    ]
    settings: dict[str, Any] = {
        "encoder": ConceptEncoderConfig(
            image_size=16, patch_size=8, tokens=3, layers=1, width=32, heads=4, drop_path=0.1
        ),
        "decoder": ConceptDiTConfig(dit=DIT),
        "token_dim": 8,
        "space": PatchSpaceConfig(patch_size=4, channels=6),
        "process": DDPMConfig(),
        "sampling": DiffusionSamplingConfig(method="ddim", steps=3),
        "use_samples": 8,
        "log_every": 1,
        "val_every": 4,
        "val_samples": 2,
        "checkpoint_every": 2,
    }
    return ConceptRun(recipe="tiny", stage=first, then=tuple(then), data=str(folder), **{**settings, **changes})


def built(config: ConceptRun) -> ConceptTokenizer:
    torch.manual_seed(0)
    tokenizer = build_concepts(config, open_space(config)).eval()
    for parameter in tokenizer.decoder.parameters():  # gates open
        torch.nn.init.normal_(parameter, std=0.1)
    return tokenizer


def bits(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(value) for value in state] if isinstance(state, list | tuple) else state


def content(out: Path) -> Any:
    folder = find_checkpoint(out)
    lines = [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(out)]
    weights = [bits(read_weights(folder, mean=mean)) for mean in (False, True)]
    return folder.name, weights, bits(read_state(folder)), lines


# --- latent spaces


def test_all_components_of_patches_lose_nothing_and_few_are_the_best_plane() -> None:
    torch.manual_seed(0)
    patches = torch.randn(400, 3, 2, 2) @ torch.diag(torch.tensor([1.0, 0.1])) + 0.3
    images = torch.randn(2, 3, 6, 4)
    for channels in (12, 5):
        space = PatchSpace(PatchSpaceConfig(patch_size=2, channels=channels))
        space.fit(patches)
        latents = space.encode(patches)  # [N, C, 1, 1]
        rows = latents.flatten(1)
        torch.testing.assert_close(rows.mean(0), torch.zeros(channels), atol=1e-4, rtol=0)
        torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(channels), atol=1e-3, rtol=0)
        assert space.encode(images).shape == (2, channels, 3, 2)
        error = (space.decode(latents) - patches).square().flatten(1).sum(1).mean()
        centred = patches.flatten(1) - patches.flatten(1).mean(0)
        left_out = torch.linalg.svdvals(centred.double())[channels:].square().sum() / len(patches)
        assert error.item() == pytest.approx(left_out.item(), abs=1e-5)
    whitened, plain = (PatchSpace(PatchSpaceConfig(patch_size=2, channels=5, whiten=w)) for w in (True, False))
    for space in (whitened, plain):
        space.fit(patches)
    # one scale for all: the first has unit variance, distances are those of pixels
    torch.testing.assert_close(plain.encode(images)[:, 0], whitened.encode(images)[:, 0])
    torch.testing.assert_close(plain.decode(plain.encode(images)), whitened.decode(whitened.encode(images)))
    found, there = plain.encode(images), plain.decode(plain.encode(images))
    ratio = (found[0] - found[1]).norm() / (there[0] - there[1]).norm()
    assert ratio.item() == pytest.approx(1 / plain.deviation[0].item(), rel=1e-4)
    whole = PatchSpace(PatchSpaceConfig(patch_size=2, channels=12))
    assert torch.equal(whole.encode(images), F.pixel_unshuffle(images, 2))  # pixels as they are, before fit


def test_latents_of_a_kl_autoencoder_are_those_of_diffusers(tmp_path: Path) -> None:
    diffusers = import_library("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    model.save_pretrained(tmp_path / "vae")
    space = AutoencoderSpace(AutoencoderSpaceConfig(path=str(tmp_path / "vae"))).eval()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert (space.channels, space.downsample, len(space.state_dict())) == (4, 2, 0)
    with torch.no_grad():
        latents = space.encode(images)
        torch.testing.assert_close(latents, (model.encode(images).latent_dist.mode() - 0.25) * 0.5)
        torch.testing.assert_close(space.decode(latents), model.decode(latents / 0.5 + 0.25).sample)
        drawn = space.train().encode(images)
    assert not torch.equal(drawn, latents)
    assert not any(parameter.requires_grad for parameter in space._outside[0].parameters())
    with pytest.raises(UserError, match=r"path: expected an AutoencoderKL of diffusers, .* got .*nothing"):
        AutoencoderSpace(AutoencoderSpaceConfig(path=str(tmp_path / "nothing")))


# --- the tokenizer


@pytest.mark.parametrize(("quantizer", "shape"), [(None, (2, 3, 8)), (FLAT, (2, 3)), (GROUPED, (2, 3, 2))])
def test_codes_of_any_quantizer_decode(
    quantizer: QuantizerConfig | None, shape: tuple[int, ...], photo_folder: Path, tmp_path: Path
) -> None:
    config = tiny(photo_folder, {"steps": 2}, quantizer=quantizer)
    train(config, out=tmp_path / "run", progress=False)
    tokenizer = load_concepts(tmp_path / "run")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.encode(images)
        assert codes.shape == shape
        assert tokenizer.vectors(codes).shape == (2, 3, 8)
        assert tokenizer.latents(images).shape == (2, 8, 1, 3)
    made = tokenizer.decode(codes, seed=3)
    assert made.shape == images.shape
    # a sample's noise is its own, whatever is beside it
    alone = tokenizer.decode(codes[1:], seed=3, numbers=[1])
    torch.testing.assert_close(alone, made[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer.reconstruct(images, seed=3), made, atol=1e-4, rtol=1e-4)


def test_an_image_of_a_prefix_does_not_depend_on_the_tokens_left_out(tmp_path: Path) -> None:
    tokenizer = built(tiny(tmp_path))
    codes = torch.randn(2, 3, 8)
    other = codes.clone()
    other[:, 2] += 1
    shown = [tokenizer.decode(c, keep=2) for c in (codes, other)]
    assert torch.equal(*shown)
    assert not torch.equal(*[tokenizer.decode(c, keep=3) for c in (codes, other)])
    each = tokenizer.decode(codes, keep=torch.tensor([2, 3]))
    torch.testing.assert_close(each[0], shown[0][0], atol=1e-4, rtol=1e-4)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"keep: expected 0 to 3 tokens, got {wrong} to {wrong}"):
            tokenizer.decode(codes, keep=wrong)


def test_guidance_compares_with_no_token_at_all(tmp_path: Path) -> None:
    """One DDIM step from noise to clean data, by hand."""
    tokenizer = built(tiny(tmp_path))
    codes, guided = torch.randn(1, 3, 8), DiffusionSamplingConfig(method="ddim", steps=1, guidance=2.5)
    noise: list[torch.Tensor] = []
    hook = tokenizer.decoder.register_forward_pre_hook(lambda module, args: noise.append(args[0]))
    made = tokenizer.decode(codes, keep=2, sampling=guided)
    hook.remove()
    start, step = noise[0][:1], torch.tensor([1])  # the one step of DDIM is the second of the process
    with torch.no_grad():
        seen, blind = (
            tokenizer.decoder(start, step, codes, torch.tensor([keep]))[:, : tokenizer.space.channels]
            for keep in (2, 0)
        )
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)[1].item()
    clean = (start - math.sqrt(1 - kept) * (blind + 2.5 * (seen - blind))) / math.sqrt(kept)
    torch.testing.assert_close(made, tokenizer.space.decode(clean), atol=1e-4, rtol=1e-4)


def test_use_of_codes_at_each_position(photo_folder: Path, tmp_path: Path) -> None:
    config = tiny(photo_folder, {"steps": 2}, quantizer=GROUPED)
    train(config, out=tmp_path / "run", progress=False)
    tokenizer = load_concepts(tmp_path / "run")
    batches = [torch.rand(5, 3, 16, 16) * 2 - 1 for _ in range(2)]
    use = position_use(tokenizer, batches)
    with torch.no_grad():
        indices = torch.cat([tokenizer.encode(images) for images in batches])  # [10, T, G]
    for position in range(3):
        shares, entropies = [], []
        for group in range(2):
            _, counts = indices[:, position, group].unique(return_counts=True)
            p = counts.double() / 10
            shares.append(len(counts) / 16)
            entropies.append(math.exp(-(p * p.log()).sum().item()))
        assert use.utilization[position].item() == pytest.approx(sum(shares) / 2)
        assert use.perplexity[position].item() == pytest.approx(sum(entropies) / 2)
    with pytest.raises(ValueError, match="tokenizer: expected one with a quantizer"):
        position_use(built(tiny(photo_folder)), batches)


def test_alignment_is_the_mean_negative_cosine() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    by_hand = -sum(
        (a[n, :, i, j] @ b[n, :, i, j] / (a[n, :, i, j].norm() * b[n, :, i, j].norm())).item()
        for n in range(2)
        for i in range(3)
        for j in range(3)
    )
    assert feature_alignment(a, b).item() == pytest.approx(by_hand / 18, abs=1e-6)
    assert feature_alignment(a.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2), a.mean((2, 3), keepdim=True)) < -0.999
    with pytest.raises(ValueError, match="repa_features: expected the 6 channels of the pretrained network, got 5"):
        feature_alignment(a, torch.randn(2, 6, 3, 3))


# --- its training


STAGES: dict[str, tuple[dict[str, Any], ...]] = {
    "dropped then nested": ({"steps": 5, "loss": ConceptLossConfig(nested_start=4), "ema_decay": 0.5},),
    "continuous then frozen codes": ({"steps": 3}, {"steps": 2, "trains": ("quantizer", "decoder"), "quantizer": LC}),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_run_goes_on_to_the_same_bits(name: str, photo_folder: Path, tmp_path: Path) -> None:
    config = tiny(photo_folder, *STAGES[name], quantizer=FLAT if name.startswith("dropped") else None)
    whole = tmp_path / "whole"
    train(config, out=whole, progress=False)
    for end in (2, 4):  # before and after nesting, or quantizing, starts
        broken = tmp_path / f"broken_{end}"
        with pytest.MonkeyPatch.context() as patch:
            _stop_after(patch, end)
            with pytest.raises(KeyboardInterrupt):
                train(config, out=broken, progress=False)
        assert checkpoint_steps(broken)[-1] == end
        train(config, out=broken, resume=True, progress=False)
        assert content(broken) == content(whole)


def _stop_after(patch: pytest.MonkeyPatch, end: int) -> None:
    """The process is gone once the checkpoint after so many steps is written."""
    from models.training import engine

    saved = engine.save_checkpoint

    def save(run_dir: Path, step: int, *args: Any, **options: Any) -> None:
        saved(run_dir, step, *args, **options)
        if step == end:
            raise KeyboardInterrupt

    patch.setattr(engine, "save_checkpoint", save)


def test_frozen_codes_are_centres_of_the_tokens_and_the_encoder_stays(photo_folder: Path, tmp_path: Path) -> None:
    config = tiny(photo_folder, *STAGES["continuous then frozen codes"])
    train(config, out=tmp_path / "run", progress=False)
    before, after = (load_concepts(tmp_path / "run", step=step) for step in (3, 5))
    assert before.quantizer is None
    assert after.quantizer is not None
    encoders = [bits(tokenizer.encoder.state_dict()) for tokenizer in (before, after)]
    assert encoders[0] == encoders[1]
    assert not torch.equal(before.decoder.final.output.weight, after.decoder.final.output.weight)
    features = after.quantizer.table.features
    assert features.shape == (16, 8)
    # standardized tokens have no mean over their channels, and so have their centres
    torch.testing.assert_close(features.mean(1), torch.zeros(16), atol=1e-4, rtol=0)


def test_which_tokens_the_decoder_is_shown(photo_folder: Path) -> None:
    loss = ConceptLossConfig(nested_start=3, drop=0.25)
    config = tiny(photo_folder, {"loss": loss})
    task = ConceptTask(config, 0, built(config), torch.device("cpu"))
    torch.manual_seed(0)
    early, late = task._keep(4000, 2), task._keep(4000, 3)
    assert early.unique().tolist() == [0, 3]
    assert (early == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert late.unique().tolist() == [1, 2, 3]
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(1) == [1]


def test_repa_pulls_the_patches_to_pretrained_features(photo_folder: Path, tmp_path: Path) -> None:
    decoder = ConceptDiTConfig(dit=DIT, repa_layer=1, repa_hidden=16, repa_features=32)
    loss = ConceptLossConfig(repa_weight=1.0, repa="efficientnet_lite0", repa_map="stem")
    config = tiny(photo_folder, {"steps": 12, "loss": loss}, decoder=decoder)
    train(config, out=tmp_path / "run", progress=False)
    lines = read_metrics(tmp_path / "run")
    assert sum(line["repa"] for line in lines[-3:]) < sum(line["repa"] for line in lines[:3]) - 0.3


def test_flows_and_another_runs_latents(photo_folder: Path, tiny_config: TokenizerRun, tmp_path: Path) -> None:
    grid = replace_stage(tiny_config, steps=2)
    train(grid, out=tmp_path / "grid", progress=False)
    config = tiny(
        photo_folder,
        {"steps": 2},
        space=TokenizerSpaceConfig(run=str(tmp_path / "grid"), scale=0.5),
        process=FlowConfig(),
        decoder=ConceptDiTConfig(dit=dataclasses.replace(DIT, learned_sigma=False)),
        sampling=DiffusionSamplingConfig(method="heun", steps=2),
    )
    train(config, out=tmp_path / "run", progress=False)
    tokenizer, source = load_concepts(tmp_path / "run"), load_tokenizer(tmp_path / "grid")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.space.encode(images), source.latents(images) * 0.5)
        torch.testing.assert_close(
            tokenizer.space.decode(source.latents(images) * 0.5), source(images).reconstruction, atol=1e-5, rtol=1e-5
        )
    assert not any("space" in name for name in tokenizer.state_dict())
    with pytest.raises(UserError, match="expected the run of a tokenizer, got that of a concept"):
        load_tokenizer(tmp_path / "run")
    with pytest.raises(UserError, match="expected the run of a concept tokenizer, got that of a tokenizer"):
        load_concepts(tmp_path / "grid")


# --- recipes


@pytest.mark.parametrize("name", CONCEPTS)
def test_recipes_survive_json(name: str) -> None:
    config = CONCEPTS[name]()
    assert config.recipe == name
    assert parse(ConceptRun, json.loads(json.dumps(dataclasses.asdict(config))), "config") == config


@pytest.mark.parametrize(("name", "decoder"), [("semanticist", 458), ("semanticist_xl", 675)])
def test_the_papers_recipes_have_the_published_sizes(name: str, decoder: int) -> None:
    """DiT without its class table, and with the token layer, null tokens and REPA's projection."""
    config = CONCEPTS[name]()
    assert config.stage.steps == pytest.approx(250_000, rel=2e-3)
    with torch.device("meta"):
        encoder = ConceptEncoder(config.encoder, config.token_dim)
        network = ConceptDiT(config.decoder, 16, tokens=256, channels=16, grid=(16, 16))
    assert encoder(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 256, 16)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(86, abs=1)
    assert network.projector is not None
    extra = sum(p.numel() for p in network.projector.parameters())
    assert (sum(p.numel() for p in network.parameters()) - extra) / 1e6 == pytest.approx(decoder, rel=5e-3)


def test_the_pocket_recipe_learns(tmp_path: Path) -> None:
    """Baseline: predicting nothing, as the decoder does before its first step."""
    config = CONCEPTS["semanticist_vq_pocket"]()
    optimizer = dataclasses.replace(config.stage.optimizer, warmup_steps=5)
    stage = dataclasses.replace(config.stage, steps=30, batch_size=8, ema_decay=None, optimizer=optimizer)
    config = dataclasses.replace(config, stage=stage, val_samples=2, use_samples=4, val_every=30)
    config = dataclasses.replace(config, data="scenes:length=60,size=64")  # to draw more takes long
    train(config, out=tmp_path / "run", progress=False)
    line = read_metrics(tmp_path / "run")[-1]
    assert {"val_loss_0", "val_loss_16", "val_psnr_1", "perplexity_16", "utilization_1", "val_psnr"} <= set(line)
    assert load_config(tmp_path / "run") == config
    source, transform = ConceptTask(config, 0, load_concepts(tmp_path / "run"), torch.device("cpu")).data("val")
    with Loader(source, transform, batch_size=16) as loader, torch.no_grad():
        images, keep = loader.batch(1)["image"], torch.full((16,), 16)
        before, after = (
            load_concepts(tmp_path / "run", step=step)(images, keep, torch.Generator().manual_seed(0)).terms["loss"]
            for step in (0, 30)
        )
    assert after.mean() < 0.95 * before.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": dataclasses.replace(FLAT, code_dim=4)}, "code_dim: expected token_dim 8, got 4"),
        ({"process": FlowConfig()}, "learned_sigma: expected False for this process, got True"),
        (
            {"sampling": DiffusionSamplingConfig(method="euler", steps=2)},
            "method: expected one of ancestral, ddim, got euler",
        ),
        ({"decoder": ConceptDiTConfig(dit=DIT, repa_layer=1)}, "repa_weight: expected more than 0 with a repa_layer"),
        ({"token_dim": 0}, "token_dim: expected at least 1, got 0"),
    ],
)
def test_a_config_that_cannot_train_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("data", **changes)


def test_sizes_that_do_not_fit_are_refused(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size: expected a multiple of 3 pixels, got 16"):
        train(tiny(photo_folder, space=PatchSpaceConfig(patch_size=3)), out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="channels: expected 1 to 12, got 13"):
        PatchSpaceConfig(patch_size=2, channels=13)
    with pytest.raises(ValueError, match="drop: expected a share below 1, got 1"):
        ConceptLossConfig(drop=1.0)
