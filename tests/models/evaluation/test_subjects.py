"""Tokenizers as what is evaluated: whole, or a first part of what they code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.errors import UserError
from models.evaluation.data_set import DataSetConfig, evaluate_tokenizer
from models.evaluation.subjects import subject_of
from models.networks.concept_dit import ConceptDiTConfig
from models.networks.dit import DiTConfig
from models.networks.vit import ConceptEncoderConfig
from models.priors.diffusion import DDPMConfig
from models.priors.diffusion_sampling import DiffusionSamplingConfig
from models.tokenizers import Tokenizer
from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.latent_space import PatchSpaceConfig
from models.tokenizers.tokenizer import build_quantizer
from models.training.concept_run import ConceptRun, build_concepts
from models.training.runs import open_space

CODES = QuantizerConfig(codebook="learned", num_codes=32, code_dim=8)


@pytest.fixture(params=["codes", "vectors"])
def concepts(request: pytest.FixtureRequest, photo_folder: Path) -> ConceptTokenizer:
    torch.manual_seed(0)
    config = ConceptRun(
        recipe="tiny",
        encoder=ConceptEncoderConfig(image_size=16, patch_size=8, tokens=3, layers=1, width=32, heads=4),
        decoder=ConceptDiTConfig(dit=DiTConfig(layers=1, width=32, heads=4, patch_size=1)),
        token_dim=8,
        space=PatchSpaceConfig(patch_size=4, channels=6),
        process=DDPMConfig(),
        sampling=DiffusionSamplingConfig(method="ddim", steps=2),
        data=str(photo_folder),
    )
    tokenizer = build_concepts(config, open_space(config)).eval()
    if request.param == "codes":
        tokenizer.quantizer = build_quantizer(CODES, None, 1, None).eval()
    for parameter in tokenizer.decoder.parameters():  # gates open
        torch.nn.init.normal_(parameter, std=0.1)
    return tokenizer


@torch.no_grad()
def test_the_first_groups_are_decoded_with_zeros_in_the_others(tokenizer: Tokenizer) -> None:
    images, index = torch.rand(2, 3, 16, 16) * 2 - 1, torch.arange(2)
    whole, first = subject_of(tokenizer), subject_of(tokenizer, keep=1)
    assert (whole.bits_per_token, first.bits_per_token) == (12, 6)
    codes, found = first(images, index)
    assert torch.equal(codes, tokenizer.encode(images))  # all are counted
    width = tokenizer.quantizer.dim // 2
    quantized = tokenizer.quantizer.decode(codes)  # [B, D, h, w]
    quantized[:, width:] = 0
    torch.testing.assert_close(found, tokenizer.decoder(quantized))
    torch.testing.assert_close(whole(images, index)[1], tokenizer.decode(codes))
    assert not torch.allclose(found, whole(images, index)[1])


@torch.no_grad()
def test_concept_tokens_are_decoded_from_the_noise_of_their_image(concepts: ConceptTokenizer) -> None:
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    subject = subject_of(concepts, keep=2)
    codes, found = subject(images, torch.tensor([4, 0, 9]))
    assert subject.tokens(codes) == 3 * 2
    wanted = concepts.decode(concepts.encode(images), keep=2, numbers=[4, 0, 9])
    torch.testing.assert_close(found, wanted)
    # the last one alone is the same image
    torch.testing.assert_close(subject(images[2:], torch.tensor([9]))[1], found[2:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, subject_of(concepts)(images, torch.tensor([4, 0, 9]))[1], atol=1e-3)


def test_concept_tokenizers_are_scored_like_others(
    concepts: ConceptTokenizer, photo_folder: Path, tmp_path: Path
) -> None:
    quantized = concepts.quantizer is not None
    metrics = ("psnr", "codes") if quantized else ("psnr",)
    config = DataSetConfig(data=str(photo_folder), split="train", size=16, batch_size=4, metrics=metrics, keep=2)
    record = evaluate_tokenizer(concepts, config, tmp_path / "scores.json")
    assert record["kept"] == record["tokens_per_image"] == 2
    assert record["images"] == 9
    assert record["bits_per_token"] == 5 if quantized else math.isnan(record["bits_per_token"])
    assert ("utilization" in record["scores"]) == quantized
    assert math.isfinite(record["scores"]["psnr"])
    wrong = DataSetConfig(data=str(photo_folder), size=32, metrics=("psnr",))
    with pytest.raises(UserError, match=r"^size: expected 16 pixels, got 32$"):
        evaluate_tokenizer(concepts, wrong, tmp_path / "scores.json")
    if not quantized:
        codes = DataSetConfig(data=str(photo_folder), size=16, metrics=("codes",))
        with pytest.raises(UserError, match=r"^codes: expected a tokenizer with a codebook, got none$"):
            evaluate_tokenizer(concepts, codes, tmp_path / "scores.json")


def test_no_more_can_be_kept_than_there_is(tokenizer: Tokenizer, concepts: ConceptTokenizer) -> None:
    for keep in (0, 3):
        with pytest.raises(UserError, match=rf"^keep: expected 1 to 2 groups, got {keep}$"):
            subject_of(tokenizer, keep)
    with pytest.raises(UserError, match=r"^keep: expected 1 to 3 tokens, got 4$"):
        subject_of(concepts, 4)
