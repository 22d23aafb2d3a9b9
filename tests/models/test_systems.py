"""The papers' systems, small: stages, crossings, labels. Oracles: published counts, indices, hand-made maps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.losses.semantic import SemanticLossConfig
from models.networks.aggregator import AggregatorConfig
from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig
from models.recipes import TOKENIZERS, mgvq, sgc
from models.tokenizers import build_tokenizer
from models.tokenizers.config import QuantizerConfig, SemanticsConfig
from models.tokenizers.labels import Labeller, majority
from models.train_tokenizer import train
from models.training.checkpoint import find_checkpoint, read_state, read_weights
from models.training.run_log import read_metrics
from models.training.runs import load_tokenizer
from models.training.tokenizer_run import TokenizerRun, TokenizerStage, replace_stage

SMALL = PatchConfig(patch_size=4, hidden=32, blocks=1)


def tiny(config: TokenizerRun) -> TokenizerRun:
    """The same system in seconds: two steps a stage, few codes, no other networks."""

    def small(stage: TokenizerStage) -> TokenizerStage:
        loss = dataclasses.replace(stage.loss, disc_start=None, perceptual_weight=0.0)
        quantizer = None if stage.quantizer is None else dataclasses.replace(stage.quantizer, num_codes=16)
        return dataclasses.replace(stage, steps=2, batch_size=4, image_size=32, loss=loss, quantizer=quantizer)

    return dataclasses.replace(
        config,
        quantizer=dataclasses.replace(config.quantizer, num_codes=16),
        stage=small(config.stage),
        then=tuple(map(small, config.then)),
        log_every=1,
        val_every=2,
        val_samples=2,
    )


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("vqgan_fc", 71.9),
        ("vqgan_fc_f8", 70.1),
        ("seqgan", 54.4),
        ("mgvq_g4", 216.0),
        ("mgvq_g4_f8", 128.2),
        ("mgvq_g8_f32", 323.6),
    ],
)
def test_recipes_of_the_papers_have_the_published_number_of_weights(recipe: str, millions: float) -> None:
    config = TOKENIZERS[recipe]()
    quantizer = config.quantizer
    # the printed counts are those with codes of 8 dimensions, and with the codes of 4 groups
    if recipe == "vqgan_fc_f8":
        quantizer = dataclasses.replace(quantizer, code_dim=8)
    if recipe == "mgvq_g8_f32":
        quantizer = mgvq.grouped(4, 32768)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config.network, quantizer)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert round(count / 1e6, 1) == millions


def test_the_second_phase_of_seqgan_has_the_published_number_of_weights() -> None:
    network, quantizer = TOKENIZERS["seqgan"]().parts(1)
    with torch.device("meta"):
        tokenizer = build_tokenizer(network, quantizer)
    assert round(sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6, 1) == 57.9


def test_the_second_phase_of_seqgan_leaves_every_index_alone(tmp_path: Path) -> None:
    config = tiny(TOKENIZERS["seqgan_pocket"]())
    train(config, out=tmp_path / "run", progress=False)
    images = Loader(open_source("embedded", "val"), Crop(size=32), batch_size=4).batch(1)["image"]
    first, second = (load_tokenizer(tmp_path / "run", step=step) for step in (2, 4))
    assert torch.equal(first.encode(images), second.encode(images))
    assert not torch.equal(first(images).reconstruction, second(images).reconstruction)
    before, after = (read_weights(find_checkpoint(tmp_path / "run", step)) for step in (2, 4))
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("decoder.")), name
    grown = set(after) - set(before)
    assert grown
    assert all(".attention." in name for name in grown)


def test_the_second_stage_of_mgvq_masks_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny(TOKENIZERS["mgvq_pocket"]()), network=SMALL)
    train(config, out=tmp_path / "run", progress=False)
    images = torch.rand(64, 3, 32, 32) * 2 - 1
    first, second = (load_tokenizer(tmp_path / "run", step=step) for step in (2, 4))
    first.quantizer.nested_keep_probs = mgvq.grouped(4, 64).nested_keep_probs
    assert (first.train()(images).indices == -1).any()
    second.quantizer.nested_keep_probs = config.parts(1)[1].nested_keep_probs
    assert (second.train()(images).indices >= 0).all()
    # a prefix of groups decodes
    indices = second.eval().encode(images)
    prefix = indices.where(torch.arange(4) < 2, -1)
    assert second.decode(prefix).shape == images.shape


CROSSINGS = {
    "seqgan's network, mgvq's quantizer": ("seqgan_pocket", "mgvq_pocket"),
    "mgvq's network, lc's quantizer": ("mgvq_pocket", "vqgan_lc_pocket"),
    "vqgan's network, seqgan's quantizer": ("vqgan_pocket", "seqgan_pocket"),
}


@pytest.mark.parametrize("names", CROSSINGS.values(), ids=CROSSINGS)
def test_quantizers_are_swapped_by_options_alone(names: tuple[str, str], tmp_path: Path) -> None:
    host, guest = (TOKENIZERS[name]() for name in names)
    quantizer = dataclasses.replace(guest.quantizer, num_codes=16, features="patches", code_dim=32)
    if quantizer.init == "matched":
        quantizer = dataclasses.replace(quantizer, feature_dim=8)
    stage = TokenizerStage(steps=2, batch_size=2, image_size=32, optimizer=host.stage.optimizer)
    config = TokenizerRun(recipe="crossing", network=host.network, quantizer=quantizer, stage=stage, log_every=1)
    train(config, out=tmp_path / "run", progress=False)
    assert all(line["loss"] > 0 for line in read_metrics(tmp_path / "run"))


@pytest.mark.parametrize(
    "loss",
    [
        "cosface",
        *(
            pytest.param(loss, marks=pytest.mark.slow)
            for loss in ("l_softmax", "sphereface", "soft_triple", "proxy_nca")
        ),
    ],
)
def test_every_semantic_loss_trains_and_resumes(loss: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny(sgc.sgc_pocket()), network=SMALL)
    semantics = SemanticsConfig(loss=SemanticLossConfig(loss=loss), code_class="histogram")
    config = dataclasses.replace(replace_stage(config, steps=4), semantics=semantics, checkpoint_every=2)
    train(config, out=tmp_path / "whole", progress=False)
    lines = read_metrics(tmp_path / "whole")
    assert all(line["semantic"] > 0 for line in lines if "semantic" in line)
    tokenizer = load_tokenizer(tmp_path / "whole")
    assert tokenizer.quantizer.table.histogram.any()
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(find_checkpoint(tmp_path / "broken", 4))
    train(config, out=tmp_path / "broken", resume=True, progress=False)
    whole, broken = (read_weights(find_checkpoint(tmp_path / name)) for name in ("whole", "broken"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, broken[name]), name


@pytest.mark.parametrize("mode", ["concat", "add", "lowest", "highest", "cross_attention"])
def test_every_aggregator_reaches_the_decoder(mode: Any) -> None:
    semantics = SemanticsConfig(aggregator=AggregatorConfig(mode=mode))
    quantizer = QuantizerConfig(codebook="semantic", num_codes=16, code_dim=32, anchor="probabilistic")
    tokenizer = build_tokenizer(SMALL, quantizer, semantics=semantics)
    images, labels = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randint(-1, 15, (2, 4, 4))
    output = tokenizer(images, labels)
    assert output.reconstruction.shape == images.shape
    (output.reconstruction.square().mean() + output.loss).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []
    assert tokenizer.decode(tokenizer.eval().encode(images)).shape == images.shape


def test_class_vectors_are_one_parameter_for_loss_and_codebook() -> None:
    quantizer = QuantizerConfig(codebook="semantic", num_codes=16, code_dim=32, anchor="probabilistic")
    tokenizer = build_tokenizer(SMALL, quantizer, semantics=SemanticsConfig())
    assert [name for name in tokenizer.state_dict() if name.startswith("semantics.loss")] == []
    triple = SemanticsConfig(loss=SemanticLossConfig(loss="soft_triple"))
    tokenizer = build_tokenizer(SMALL, quantizer, semantics=triple)
    images, labels = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randint(-1, 15, (2, 4, 4))
    tokenizer(images, labels)
    assert torch.equal(tokenizer.quantizer.table.classes, tokenizer.semantics.loss.class_vectors)


def test_a_token_has_the_class_of_most_of_its_pixels() -> None:
    maps = torch.tensor([[[0, 0, 2, 2], [1, 0, -1, -1], [-1, -1, 3, 1], [-1, -1, 1, 3]]])
    assert majority(maps, 2, 4).tolist() == [[[0, 2], [-1, 1]]]  # of equals the first
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(-1, 6, (3, 16, 24), generator=generator)
    found = majority(maps, 8, 6)
    for image in range(3):
        for row in range(2):
            for column in range(3):
                cell = maps[image, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                counts = [(cell == number).sum().item() for number in range(6)]
                assert found[image, row, column] == counts.index(max(counts))


def test_labels_come_from_maps_or_clusters() -> None:
    batch = Loader(open_source("scenes:size=64,length=4", "train"), Crop(size=64), batch_size=2).batch(1)
    assert torch.equal(Labeller(SemanticsConfig(), 8, iter(()))(batch), majority(batch["map"], 8, 15))
    with pytest.raises(UserError, match="num_classes: expected more than"):
        Labeller(SemanticsConfig(num_classes=2), 8, iter(()))(batch)
    with pytest.raises(UserError, match="labels: expected 'segformer' or 'clusters' for data without label maps"):
        Labeller(SemanticsConfig(), 8, iter(()))({"image": batch["image"]})
    clusters = SemanticsConfig(labels="clusters", num_classes=3, labels_layer="expand5")
    first, second = (Labeller(clusters, 8, iter([batch] * 9))(batch) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (2, 8, 8)
    assert set(first.unique().tolist()) <= {0, 1, 2}


def small_vqgan(**changes: Any) -> TokenizerRun:
    network = VQGANConfig(base_channels=32, multipliers=(1, 2), res_blocks=1, attention_levels=(), latent_channels=32)
    config = dataclasses.replace(tiny(TOKENIZERS["cvq_pocket"]()), network=network)
    return dataclasses.replace(replace_stage(config, image_size=16), **changes)


def test_activations_computed_again_change_nothing(tmp_path: Path) -> None:
    """Neither weights nor how often codes are counted; a network that does not offer it says so."""
    results = {}
    for again in (False, True):
        config = small_vqgan(checkpoint_activations=again)
        results[again] = train(config, out=tmp_path / str(again), progress=False)
    for name, tensor in results[False].model.state_dict().items():
        torch.testing.assert_close(results[True].model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert results[True].metrics["perplexity"] == pytest.approx(results[False].metrics["perplexity"], rel=1e-4)
    config = dataclasses.replace(small_vqgan(), network=SMALL, checkpoint_activations=True)
    with pytest.raises(UserError, match="checkpoint_activations: expected a network that offers it, got none"):
        train(config, out=tmp_path / "none", progress=False)


def test_parts_of_a_batch_make_one_update_of_running_means(tmp_path: Path) -> None:
    config = replace_stage(small_vqgan(), steps=3)
    quantizer = dataclasses.replace(config.quantizer, codebook="ema", codebook_weight=0.0)
    trained = {}
    for accumulate in (1, 2):
        run = replace_stage(dataclasses.replace(config, quantizer=quantizer), accumulate=accumulate)
        result = train(run, out=tmp_path / str(accumulate), progress=False)
        assert result.model.quantizer.table.accumulate == accumulate
        trained[accumulate] = result.model.quantizer.table
    # three updates of decay 0.99, however many forwards there were
    for table in trained.values():
        assert table.cluster_size.sum().item() == pytest.approx(16 * 0.99**3 + 4 * 64 * (1 - 0.99**3), rel=1e-4)


@pytest.mark.slow
def test_a_compiled_tokenizer_has_the_same_loss_and_gradients(tmp_path: Path) -> None:
    """In one step: Adam divides gradients that are nothing but rounding, of biases before a norm, by themselves."""
    losses, gradients = [], []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        train(replace_stage(small_vqgan(compile=compiled), steps=1), out=run, progress=False)
        losses.append([line["loss"] for line in read_metrics(run)])
        adam = read_state(find_checkpoint(run))["optimizers"]["model"]["state"]
        gradients.append(torch.cat([of["exp_avg"].flatten() for of in adam.values()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm() > 0
