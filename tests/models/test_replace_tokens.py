"""Token replacement. Oracle: all distances sorted, the codes of one rank decoded."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.evaluation.replacement import replaced, replacement_curve
from models.replace_tokens import main
from models.train_tokenizer import train
from models.training.runs import load_tokenizer
from models.training.tokenizer_run import TokenizerRun, replace_stage


@pytest.fixture(scope="module", params=[(1, "l2"), (2, "cosine")])
def run(request: pytest.FixtureRequest, tiny_config: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    groups, metric = request.param
    quantizer = dataclasses.replace(tiny_config.quantizer, groups=groups, metric=metric)
    out = tmp_path_factory.mktemp("replace") / "run"
    train(replace_stage(dataclasses.replace(tiny_config, quantizer=quantizer), steps=8), out=out, progress=False)
    return out


def test_tokens_of_a_rank_are_those_of_sorted_distances(run: Path) -> None:
    tokenizer = load_tokenizer(run)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    book = tokenizer.quantizer.codebook.double()  # [G, K, D]
    with torch.no_grad():
        z = tokenizer.latents(images).movedim(1, -1).unflatten(-1, (len(book), -1)).double()  # [B, h, w, G, D]
        if tokenizer.quantizer.metric == "cosine":
            z, book = torch.nn.functional.normalize(z, dim=-1), torch.nn.functional.normalize(book, dim=-1)
        order = torch.stack(
            [torch.cdist(z[:, :, :, g], book[g][None, None]).argsort(-1) for g in range(len(book))], dim=3
        )  # [B, h, w, G, K]
        made = replaced(tokenizer, images, [1, 7, 64])
        for rank, image in zip([1, 7, 64], made, strict=True):
            codes = order[..., rank - 1]
            expected = tokenizer.decode(codes if len(book) > 1 else codes[..., 0])
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made[0], tokenizer(images).reconstruction, atol=1e-5, rtol=1e-5)


def test_the_command_writes_curve_and_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(run, ranks=(1, 4, 64, 1000), images=2, batch_size=2)
    content = json.loads((run / "replacement.json").read_text())
    assert content["ranks"] == [1, 4, 64]
    assert content["psnr"][0] > content["psnr"][2]
    assert (run / "replacement.png").stat().st_size > 1000
    assert f"{content['psnr'][1]:.2f}" in capsys.readouterr().out
    # the first figure by hand
    tokenizer, source = load_tokenizer(run), open_source(content["data"], "val")
    crop = Crop(size=32, resize=32, place="center")
    with Loader(source, crop, batch_size=2, shuffle=False) as loader, torch.no_grad():
        images = loader.batch(1)["image"]
        reconstruction = tokenizer(images).reconstruction.clamp(-1, 1)
        error = (reconstruction - images).square().mean((1, 2, 3)) / 4
    assert content["psnr"][0] == pytest.approx(
        sum(-10 * math.log10(e) for e in error.tolist()) / len(error), abs=1e-3
    )


def test_what_cannot_be_is_refused(run: Path) -> None:
    tokenizer = load_tokenizer(run)
    with pytest.raises(UserError, match="ranks: expected numbers from 1 to 64, got 65"):
        replacement_curve(tokenizer, [1, 65], data="embedded", size=32)
    with pytest.raises(UserError, match="size: expected a multiple of 8 pixels, got 30"):
        replacement_curve(tokenizer, [1], data="embedded", size=30)
