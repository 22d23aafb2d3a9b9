"""Scores on whole photographs of any size, as the demo shows them.

Every photograph is taken at its full size, padded to a multiple of the tokenizer's factor and cropped back. PSNR and
SSIM come from the held-out photographs, codebook use from both splits. H W pixels, h w grid, G groups, K codes,
D code dimension, M encoder vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from models.data.photos import Photo, load_photos
from models.data.pixels import to_image, to_tensor
from models.evaluation.record import PIXELS, tool, write_json
from models.metrics.codes import CodeCounts, code_use
from models.metrics.pixel import Psnr, ssim, to_unit
from models.tokenizers import Tokenizer
from models.training.runs import load_config, load_tokenizer

_CLOUD = 2000  # encoder vectors kept for the picture of the codebook


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

    psnr: float  # dB, see models.metrics.pixel.Psnr
    psnr_dataset: float  # dB
    psnr_luma: float  # dB
    ssim: float
    utilization: float  # on the held-out photographs
    perplexity: float
    utilization_train: float  # on the training photographs
    perplexity_train: float
    photos: tuple[PhotoScore, ...]
    about: dict[str, str | int | float]  # what the figures are of


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
def reconstruct(tokenizer: Tokenizer, photo: Photo, tokens: Tokens) -> torch.Tensor:  # [1, 3, H, W]
    """Decode the tokens of a photograph and cut off what was padded; not clipped."""
    height, width = photo.image.shape[:2]
    return tokenizer.decode(tokens.indices)[:, :, :height, :width]


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
    data = load_config(run_dir).data
    photos = load_photos(data)
    folder = run_dir / "evaluation"
    folder.mkdir(exist_ok=True)
    groups, num_codes, _ = tokenizer.quantizer.codebook.shape

    psnr, similarities, latents, grids, names = Psnr(), list[float](), list[torch.Tensor](), list[int](), list[str]()
    counts, train_counts = CodeCounts(groups, num_codes), CodeCounts(groups, num_codes)
    for number, photo in enumerate(photo for photo in photos if photo.split == "val"):
        tokens = tokenize(tokenizer, photo)
        reconstruction = reconstruct(tokenizer, photo, tokens)
        pair = to_unit(to_tensor(photo.image)), to_unit(reconstruction)
        psnr.update(torch.tensor([number]), *pair)
        similarities.append(ssim(*pair).item())
        counts.update(tokens.indices)
        latents.append(tokens.latents)
        grids.append(len(tokens.latents))
        names.append(photo.name)
        Image.fromarray(to_image(reconstruction[0])).save(folder / f"photo_{number}.png")
    for photo in photos:
        if photo.split == "train":
            train_counts.update(tokenize(tokenizer, photo).indices)
    _save_codebook(folder / "codebook.npz", tokenizer, latents, counts.counts)

    utilization, perplexity = code_use(counts.counts)
    utilization_train, perplexity_train = code_use(train_counts.counts)
    evaluation = Evaluation(
        **psnr.compute(),
        ssim=math.fsum(similarities) / len(similarities),
        utilization=utilization,
        perplexity=perplexity,
        utilization_train=utilization_train,
        perplexity_train=perplexity_train,
        photos=tuple(
            PhotoScore(name, value, similarity, grid, f"evaluation/photo_{number}.png")
            for number, (name, value, similarity, grid) in enumerate(
                zip(names, psnr.of_images(), similarities, grids, strict=True)
            )
        ),
        about={
            "set": f"{data}, held-out photographs",
            "images": len(names),
            "crop": "none, edges repeated up to a multiple of the tokenizer's factor and cut off again",
            "resize": "none",
            "pixels": PIXELS,
            "bits_per_token": groups * math.log2(num_codes),
            "tool": tool(),
        },
    )
    write_json(run_dir / "evaluation.json", dataclasses.asdict(evaluation))
    return evaluation


def _save_codebook(path: Path, tokenizer: Tokenizer, latents: Sequence[torch.Tensor], counts: torch.Tensor) -> None:
    """Use of every code, and the first group's codes and some encoder vectors in two dimensions."""
    vectors = torch.cat([vectors[:, 0] for vectors in latents])  # [M, D]
    stride = math.ceil(len(vectors) / _CLOUD)
    codes_2d, vectors_2d = principal_plane(tokenizer.quantizer.codebook[0].detach(), vectors)
    np.savez_compressed(path, counts=counts.numpy(), codes=codes_2d, vectors=vectors_2d[::stride])
