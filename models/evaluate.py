"""Scores of a trained tokenizer on whole photographs: ``python -m models.evaluate RUN_DIR``.

Every photograph is taken at its full size, padded to a multiple of the tokenizer's factor and cropped back. PSNR and
SSIM come from the held-out photographs, codebook use from both splits. Pixels are float64 in [0, 1] here, clipped but
not rounded to 8 bits. H W pixels, h w grid, G groups, K codes, D code dimension, M encoder vectors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from models import command
from models.data.photos import Photo, load_photos, to_image, to_tensor
from models.tokenizers import Tokenizer
from models.training.runs import load_config, load_tokenizer

_CLOUD = 2000  # encoder vectors kept for the picture of the codebook
_SSIM_BORDER = 5  # half a window
_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601 at 219 levels, as in MATLAB's rgb2ycbcr


class Pair(NamedTuple):
    """A photograph and its reconstruction."""

    original: torch.Tensor  # [3, H, W] float64 in [0, 1]
    reconstruction: torch.Tensor  # [3, H, W] float64 in [0, 1]


class CodeUse(NamedTuple):
    """How much of a codebook is in use; means over groups."""

    utilization: float  # share of codes used at least once
    perplexity: float  # exp of the entropy of the code distribution


@dataclass(frozen=True)
class PhotoScore:
    """One held-out photograph."""

    name: str
    psnr: float
    ssim: float
    tokens: int  # grid positions, h * w
    picture: str  # the reconstruction, below the run directory


@dataclass(frozen=True)
class Evaluation:
    """Everything ``evaluation.json`` holds."""

    psnr: float  # dB, see psnr_rgb
    psnr_dataset: float  # dB, see psnr_dataset
    psnr_luma: float  # dB, see psnr_luma
    ssim: float
    utilization: float  # on the held-out photographs
    perplexity: float
    utilization_train: float  # on the training photographs
    perplexity_train: float
    photos: tuple[PhotoScore, ...]


def _error(pair: Pair) -> float:
    return F.mse_loss(pair.reconstruction, pair.original).item()


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error else math.inf


def psnr_rgb(pairs: Sequence[Pair]) -> float:
    """Mean over images of the PSNR over RGB in [0, 1]: the convention used throughout, and LlamaGen's."""
    return sum(_decibels(_error(pair)) for pair in pairs) / len(pairs)


def psnr_dataset(pairs: Sequence[Pair]) -> float:
    """PSNR of the mean over images of the squared error (MGVQ); never above :func:`psnr_rgb`."""
    return _decibels(sum(_error(pair) for pair in pairs) / len(pairs))


def psnr_luma(pairs: Sequence[Pair]) -> float:
    """Mean over images of the PSNR of the Y channel of YCbCr (VQGAN-LC).

    Y covers 219 of 255 levels and leaves colour errors out, so the figure is some decibels above the others.
    """
    weight = torch.tensor(_LUMA, dtype=torch.float64)[:, None, None] / 255
    luma = [Pair(*((image * weight).sum(0, keepdim=True) for image in pair)) for pair in pairs]
    return psnr_rgb(luma)


def ssim_rgb(pairs: Sequence[Pair]) -> float:
    """Mean over images of the SSIM over RGB in [0, 1]: Gaussian windows of 11 pixels that lie inside the image."""
    return sum(_ssim(pair) for pair in pairs) / len(pairs)


def _ssim(pair: Pair) -> float:
    original, reconstruction = (image[None] for image in pair)
    _, windows = structural_similarity_index_measure(reconstruction, original, data_range=1.0, return_full_image=True)
    # the outermost windows see a mirrored border
    return windows[..., _SSIM_BORDER:-_SSIM_BORDER, _SSIM_BORDER:-_SSIM_BORDER].mean().item()


def code_use(counts: torch.Tensor) -> CodeUse:  # [G, K]
    """Utilization and perplexity of a histogram of codes."""
    share = counts.double() / counts.sum(1, keepdim=True)  # [G, K]
    entropy = -torch.special.xlogy(share, share).sum(1)  # [G]
    return CodeUse((counts > 0).double().mean().item(), entropy.exp().mean().item())


class Tokens(NamedTuple):
    """What the tokenizer makes of a photograph."""

    latents: torch.Tensor  # [M, G, D] encoder vectors, scaled as they are compared with the codes
    indices: torch.Tensor  # [1, h, w] or [1, h, w, G]


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, photo: Photo) -> Tokens:
    """Encode one whole photograph, its right and lower edges repeated up to the tokenizer's factor."""
    images = to_tensor(photo.image)  # [1, 3, H, W]
    height, width = images.shape[2:]
    padding = (0, -width % tokenizer.downsample, 0, -height % tokenizer.downsample)
    latents = tokenizer.latents(F.pad(images, padding, mode="replicate"))  # [1, G * D, h, w]
    groups, _, code_dim = tokenizer.quantizer.codebook.shape
    vectors = latents[0].flatten(1).T.reshape(-1, groups, code_dim)
    if tokenizer.quantizer.metric == "cosine":
        vectors = F.normalize(vectors, dim=-1)  # as the codes are
    return Tokens(vectors, tokenizer.quantizer.encode(latents))


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, photo: Photo, tokens: Tokens) -> Pair:
    """Decode the tokens of a photograph and cut off what was padded."""
    height, width = photo.image.shape[:2]
    decoded = tokenizer.decode(tokens.indices)[0, :, :height, :width]  # [3, H, W]
    original, reconstruction = ((image.double() + 1) / 2 for image in (to_tensor(photo.image)[0], decoded))
    return Pair(original, reconstruction.clamp(0, 1))


def count_codes(tokens: Sequence[Tokens], shape: torch.Size) -> torch.Tensor:  # [G, K]
    """Histogram of the codes of some photographs for a codebook of ``shape`` [G, K, D], one row per group."""
    groups, num_codes, _ = shape
    indices = torch.cat([photo.indices.reshape(-1, groups) for photo in tokens])  # [M, G]
    return torch.stack([torch.bincount(column, minlength=num_codes) for column in indices.T])


def principal_plane(
    codes: torch.Tensor,  # [K, D]
    vectors: torch.Tensor,  # [M, D]
) -> tuple[np.ndarray, np.ndarray]:  # [K, 2], [M, 2]
    """Codes and encoder vectors in the plane in which the encoder vectors vary most."""
    centre = vectors.double().mean(0)
    directions = torch.linalg.svd(vectors.double() - centre, full_matrices=False).Vh[:2].T  # [D, 2]
    # the signs of singular vectors are arbitrary; make them a function of the data alone
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    codes_2d, vectors_2d = ((points.double() - centre) @ directions for points in (codes, vectors))
    return codes_2d.float().numpy(), vectors_2d.float().numpy()


def evaluate(run_dir: Path) -> Evaluation:
    """Score a run; writes ``evaluation.json`` and the folder ``evaluation`` with pictures and codes into it."""
    tokenizer = load_tokenizer(run_dir)
    photos = load_photos(load_config(run_dir).data)
    folder = run_dir / "evaluation"
    folder.mkdir(exist_ok=True)
    shape = tokenizer.quantizer.codebook.shape

    scores, pairs, tokens = [], [], []
    for number, photo in enumerate(photo for photo in photos if photo.split == "val"):
        tokens.append(tokenize(tokenizer, photo))
        pairs.append(reconstruct(tokenizer, photo, tokens[-1]))
        picture = folder / f"photo_{number}.png"
        Image.fromarray(to_image(pairs[-1].reconstruction * 2 - 1)).save(picture)
        grid = tokens[-1].latents.shape[0]
        scores.append(
            PhotoScore(photo.name, psnr_rgb(pairs[-1:]), ssim_rgb(pairs[-1:]), grid, f"evaluation/{picture.name}")
        )
    counts = count_codes(tokens, shape)
    train_counts = count_codes([tokenize(tokenizer, photo) for photo in photos if photo.split == "train"], shape)
    _save_codebook(folder / "codebook.npz", tokenizer, tokens, counts)

    utilization, perplexity = code_use(counts)
    utilization_train, perplexity_train = code_use(train_counts)
    evaluation = Evaluation(
        psnr=psnr_rgb(pairs),
        psnr_dataset=psnr_dataset(pairs),
        psnr_luma=psnr_luma(pairs),
        ssim=ssim_rgb(pairs),
        utilization=utilization,
        perplexity=perplexity,
        utilization_train=utilization_train,
        perplexity_train=perplexity_train,
        photos=tuple(scores),
    )
    write_json(run_dir / "evaluation.json", dataclasses.asdict(evaluation))
    return evaluation


def _save_codebook(path: Path, tokenizer: Tokenizer, tokens: Sequence[Tokens], counts: torch.Tensor) -> None:
    """Use of every code, and the first group's codes and some encoder vectors in two dimensions."""
    vectors = torch.cat([photo.latents[:, 0] for photo in tokens])  # [M, D]
    stride = math.ceil(len(vectors) / _CLOUD)
    codes_2d, vectors_2d = principal_plane(tokenizer.quantizer.codebook[0].detach(), vectors)
    np.savez_compressed(path, counts=counts.numpy(), codes=codes_2d, vectors=vectors_2d[::stride])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all of it or nothing, so that a file that exists is whole; numbers that are not finite become null."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(evaluation: Evaluation) -> Table:
    table = Table("photo", "PSNR dB", "SSIM", title="held-out photographs")
    for photo in evaluation.photos:
        table.add_row(photo.name, f"{photo.psnr:.2f}", f"{photo.ssim:.3f}")
    table.add_section()
    table.add_row("mean", f"{evaluation.psnr:.2f}", f"{evaluation.ssim:.3f}")
    table.add_row("PSNR of the mean error", f"{evaluation.psnr_dataset:.2f}", "")
    table.add_row("PSNR of luma", f"{evaluation.psnr_luma:.2f}", "")
    return table


def main(run_dir: Annotated[Path, tyro.conf.Positional]) -> None:
    """Score a trained tokenizer on whole photographs.

    Args:
        run_dir: folder of a training run.
    """
    evaluation = evaluate(run_dir)
    console = Console()
    console.print(_table(evaluation))
    console.print(
        f"codes in use: {evaluation.utilization:.1%} (perplexity {evaluation.perplexity:.1f}) on held-out, "
        f"{evaluation.utilization_train:.1%} ({evaluation.perplexity_train:.1f}) on training photographs"
    )


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main)))
