"""What systems do, in rows of pictures: prefixes, classes of tokens, the next frames of a street.

n images of S pixels, h w grid, T frames, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.data.loader import Loader
from models.data.pixels import to_float
from models.data.sample import SplitName
from models.data.source import open_source
from models.data.street.classes import CLASSES
from models.data.transforms import Crop
from models.evaluation.subjects import subject_of
from models.losses.pixel import psnr
from models.metrics.semantic import CodeClasses, cell_class_counts, majority_labels
from models.priors.draw import sample, sampling_config
from models.priors.sample_random import SampleRandom
from models.priors.video import VideoPrior
from models.tokenizers.concept import ConceptTokenizer
from models.training.concept_task import powers_of_two
from models.training.prior_data import check_tokenizer
from models.training.runs import load_codec, load_config, load_prior, load_prior_config, load_tokenizer
from models.training.tokenizer_run import TokenizerRun

# near to what the things look like
_COLOURS = {
    "road": (128, 72, 120),
    "lane marking": (250, 235, 210),
    "sidewalk": (235, 60, 225),
    "terrain": (150, 235, 150),
    "building": (95, 95, 100),
    "window": (225, 165, 60),
    "vegetation": (75, 130, 40),
    "sky": (90, 165, 215),
    "car": (20, 40, 190),
    "bus": (0, 110, 120),
    "truck": (30, 200, 190),
    "pedestrian": (220, 25, 60),
    "pole": (165, 165, 170),
    "traffic light": (250, 120, 20),
    "traffic sign": (245, 225, 0),
    "none": (0, 0, 0),
}
Row = tuple[str, torch.Tensor]  # its label, and images [n, 3, S, S]
_LEARNT, _JUDGED, _BATCH = 128, 64, 32  # scenes that tell the class of a code; held-out ones that check it


def telling(images: torch.Tensor, count: int) -> torch.Tensor:  # [N, 3, S, S] -> [count, 3, S, S]
    """Those in which pixels differ most."""
    return images[images.flatten(1).std(1).topk(count).indices.sort().values]


@torch.no_grad()
def prefix_rows(run_dir: Path, images: torch.Tensor) -> list[Row]:
    """Images, and what is made of their first concept tokens, or of the first groups of each token."""
    tokenizer = load_codec(run_dir).tokenizer
    if isinstance(tokenizer, ConceptTokenizer):
        whole, unit = tokenizer.length, "tokens"
    else:
        whole, unit = len(tokenizer.quantizer.codebook), "groups"
    rows = [(f"held-out crops\n{load_config(run_dir).recipe}", images)]
    for kept in range(1, whole + 1) if whole <= 4 else powers_of_two(whole):
        _, decoded = subject_of(tokenizer, kept)(images, torch.arange(len(images)))
        rows.append((f"{kept} of {whole} {unit}\n{psnr(decoded, images).item():.1f} dB", decoded))
    return rows


class ClassRows(NamedTuple):
    """Scenes, and what their tokens stand for."""

    rows: list[Row]
    legend: list[tuple[str, np.ndarray]]  # class and colour [3], of the classes in the rows


@torch.no_grad()
def class_rows(run_dir: Path, count: int) -> ClassRows:
    """Held-out street scenes, their maps, the class of each cell, and that of its code.

    A code stands for the class that it lies on most often in training scenes.
    """
    config, tokenizer = load_config(run_dir), load_tokenizer(run_dir)
    assert isinstance(config, TokenizerRun)
    codes = CodeClasses(tokenizer.quantizer.codebook.shape[1], len(CLASSES))
    for batch in _scenes(config, "train", _LEARNT):
        codes.update(
            tokenizer.encode(batch["image"]), cell_class_counts(batch["map"], tokenizer.downsample, len(CLASSES))
        )
    told, truth, shown = list[torch.Tensor](), list[torch.Tensor](), list[dict[str, torch.Tensor]]()
    for batch in _scenes(config, "val", _JUDGED):
        told.append(codes.dominant[tokenizer.encode(batch["image"])])
        cells = cell_class_counts(batch["map"], tokenizer.downsample, len(CLASSES))
        truth.append(majority_labels(cells))
        shown.append(batch)
    found, right = torch.cat(told), torch.cat(truth)  # [N, h, w]
    frequent = right.flatten().bincount().max().item() / right.numel()
    images, maps = (torch.cat([batch[name] for batch in shown])[:count] for name in ("image", "map"))
    rows = [
        (f"held-out scenes\n{config.recipe}", images),
        ("label maps", _coloured(maps)),
        ("class of most pixels\nof each token", _coloured(right[:count], tokenizer.downsample)),
        (
            f"class its code\nstands for\n{(found == right).float().mean():.0%} the same\n({frequent:.0%} by guess)",
            _coloured(found[:count], tokenizer.downsample),
        ),
    ]
    seen = torch.cat([part[:count].flatten() for part in (maps, right, found)]).unique().tolist()
    names = [*CLASSES, "none"]
    return ClassRows(rows, [(names[label], np.array(_COLOURS[names[label]])) for label in seen])


@torch.no_grad()
def video_rows(run_dir: Path, prior_dir: Path, clips: Sequence[int], data: str) -> list[Row]:
    """Of each clip: its frames, what their codes hold, what a video prior expects after the first, the last kept.

    ``data`` names clips longer than the prior's. PSNR is of the frames that the prior does not get.
    """
    prior, codes = load_prior(prior_dir), load_prior_config(prior_dir).codes
    assert isinstance(prior, VideoPrior)
    assert codes is not None
    check_tokenizer(run_dir, codes, prior_dir)
    codec, source = load_codec(run_dir), open_source(data, "val")
    given = prior.codes.frames - 1
    rows = list[Row]()
    for number in clips:
        clip = source.read(number)
        assert clip is not None
        frames = to_float(torch.from_numpy(np.array(clip.image)).movedim(-1, 1))  # [T, 3, S, S]
        seen = codec.codes(frames[:given]).unsqueeze(0)
        options = sampling_config(prior, temperature=0.0)
        drawn = sample(prior, options, SampleRandom(0, range(1)), context=seen, new_frames=len(frames) - given)[0]
        known, expected = codec.images(drawn).split([given, len(frames) - given])
        ways = (
            ("their codes", codec.images(codec.codes(frames[given:]))),
            ("prior", expected),
            (f"frame {given} kept", known[-1:].expand_as(expected)),
        )
        rows.append((f"held-out\nstreet {number + 1}", frames))
        for name, way in ways:
            rows.append((f"{name}\n{psnr(way, frames[given:]).item():.1f} dB", torch.cat([known, way])))
    return rows


def _scenes(config: TokenizerRun, split: SplitName, count: int) -> list[dict[str, torch.Tensor]]:
    """Batches of whole scenes with maps."""
    size = config.stage.image_size
    crop = Crop(size=size, resize=size, place="center")
    with Loader(open_source(config.data, split), crop, batch_size=_BATCH, shuffle=False) as loader:
        return [loader.batch(step) for step in range(1, count // _BATCH + 1)]


def _coloured(classes: torch.Tensor, cell: int = 1) -> torch.Tensor:  # [n, h, w], -1 = none -> [n, 3, S, S]
    colours = torch.tensor([_COLOURS[name] for name in (*CLASSES, "none")], dtype=torch.uint8)[classes]
    return to_float(colours.movedim(-1, 1)).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
