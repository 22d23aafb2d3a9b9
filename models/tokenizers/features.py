"""How a codebook starts: the explicit step between building a tokenizer and training it.

``init="published"`` leaves the codes as their module draws them, ``"kmeans"`` clusters encoder outputs. A
frozen codebook is k-means of whitened training patches; ``"matched"`` scales and shifts its projector to the
encoder's first outputs. N patches, P pixels per side, K codes, F features.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import vqkernels
from models.data.photos import Photo, RandomCrops
from models.errors import UserError
from models.tokenizers import Tokenizer
from models.training.config import TrainConfig

_PATCHES_PER_CODE = 16
_KMEANS_ITERATIONS = 10


def codebook_features(config: TrainConfig, photos: Sequence[Photo]) -> torch.Tensor | None:  # [K, F]
    """The codes of a frozen codebook, as the config's ``features`` names them; None for another codebook."""
    quantizer = config.quantizer
    if quantizer.codebook != "frozen":
        return None
    if quantizer.features != "patches":
        return _load_features(Path(quantizer.features), quantizer.num_codes)
    train = [photo for photo in photos if photo.split == "train"]
    count = quantizer.num_codes * _PATCHES_PER_CODE
    crops = RandomCrops(train, size=config.network.downsample, batch_size=count, seed=config.seed)
    patches = crops.batch(0)  # [N, 3, P, P]
    white = whiten(patches.flatten(1), quantizer.feature_dim)  # [N, F]
    result = vqkernels.kmeans(white, quantizer.num_codes, max_iter=_KMEANS_ITERATIONS, seed=config.seed)
    return result.centroids


def fit_codebook(tokenizer: Tokenizer, config: TrainConfig, crops: RandomCrops) -> None:
    """Run the config's ``init`` on encoder outputs of the first batches."""
    quantizer = config.quantizer
    tokens = config.batch_size * (config.image_size // tokenizer.downsample) ** 2  # per batch
    if quantizer.num_codes > tokens * config.steps:
        seen = tokens * config.steps
        print(
            f"num_codes: {quantizer.num_codes} codes, but training sees only {seen} tokens",
            file=sys.stderr,
        )
    if quantizer.init == "published":
        return
    wanted = quantizer.num_codes * _PATCHES_PER_CODE if quantizer.init == "kmeans" else tokens
    images = (crops.batch(number) for number in range(math.ceil(wanted / tokens)))
    device = next(tokenizer.parameters()).device
    with torch.no_grad():
        latents = (tokenizer.latents(batch.to(device)) for batch in images)  # each [B, D, h, w]
        tokenizer.quantizer.fit_codebook(latents, seed=config.seed)


def whiten(x: torch.Tensor, dim: int) -> torch.Tensor:  # [N, F'] -> [N, dim] float32
    """The ``dim`` leading principal components, each scaled to unit variance."""
    if dim > x.shape[1]:
        raise ValueError(f"feature_dim: expected at most the {x.shape[1]} values of a patch, got {dim}")
    centered = x.double() - x.double().mean(dim=0)  # [N, F']
    variance, direction = torch.linalg.eigh(centered.mT @ centered / len(x))  # ascending [F'], [F', F']
    scale = variance[-dim:].clamp(min=1e-12).rsqrt()
    return (centered @ direction[:, -dim:] * scale).float()


def _load_features(path: Path, num_codes: int) -> torch.Tensor:  # [K, F]
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"features: {path} is not a readable .npy file ({error})") from error
    if features.ndim != 2 or len(features) != num_codes:
        raise UserError(f"features: expected [{num_codes}, F] in {path}, got {list(features.shape)}")
    return torch.from_numpy(features).float()
