"""Token replacement, as VQGAN-LC has it: every token becomes the M-th nearest code of its vector.

D code dimension, G groups, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

import vqkernels
from models.data.loader import Loader
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.tokenizers import Tokenizer

MOST = 1024  # of vqkernels.top_codes


@torch.no_grad()
def replaced(tokenizer: Tokenizer, images: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Reconstructions of images [B, 3, H, W] from the codes of each rank, the first of which is 1."""
    quantizer = tokenizer.quantizer
    groups, _, _ = quantizer.codebook.shape
    vectors = tokenizer.latents(images).movedim(1, -1)  # [B, h, w, D]
    parts = vectors.unflatten(-1, (groups, -1))  # [B, h, w, G, D / G]
    found = vqkernels.top_codes(parts, quantizer.codebook, max(ranks), metric=quantizer.metric)
    chosen = [found.indices[..., rank - 1] for rank in ranks]  # [B, h, w, G] each
    return [tokenizer.decode(codes if groups > 1 else codes[..., 0]) for codes in chosen]


def replacement_curve(
    tokenizer: Tokenizer,
    ranks: Sequence[int],
    *,
    data: str,
    split: Literal["train", "val"] = "val",
    size: int,
    images: int = 100,
    batch_size: int = 8,
) -> list[float]:
    """PSNR in dB at each rank, the mean over middle crops of images.

    Args:
        tokenizer: in eval mode.
        ranks: M, each from 1 to the number of codes.
        data: data set.
        split: side of it.
        size: pixels per side of the crops.
        images: how many, at most.
        batch_size: at a time.
    """
    most = min(MOST, tokenizer.quantizer.codebook.shape[1])
    wrong = [rank for rank in ranks if not 1 <= rank <= most]
    if wrong or not ranks:
        raise UserError(f"ranks: expected numbers from 1 to {most}, got {wrong[0] if wrong else 'none'}")
    if size < 1 or size % tokenizer.downsample:
        raise UserError(f"size: expected a multiple of {tokenizer.downsample} pixels, got {size}")
    if min(images, batch_size) < 1:
        raise UserError(f"images, batch_size: expected at least 1, got {images}, {batch_size}")
    source, crop = open_source(data, split), Crop(size=size, resize=size, place="center")
    device = next(tokenizer.parameters()).device
    wanted, seen = min(images, len(source)), 0
    sums = [0.0] * len(ranks)
    with Loader(source, crop, batch_size=min(batch_size, wanted), shuffle=False, device=device) as loader:
        for batch in loader:
            originals = batch["image"][: wanted - seen]
            for place, made in enumerate(replaced(tokenizer, originals, ranks)):
                error = (made.clamp(-1, 1).double() - originals.double()).square().mean((1, 2, 3)) / 4
                sums[place] += (-10 * error.log10()).sum().item()
            seen += len(originals)
            if seen == wanted:
                break
    return [total / seen for total in sums]
