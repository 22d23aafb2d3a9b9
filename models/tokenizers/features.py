"""How a codebook starts: the explicit step between building a tokenizer and training it.

``init="published"`` leaves the codes as their module draws them, ``"kmeans"`` clusters encoder outputs. A
frozen codebook is k-means of whitened training patches; ``"matched"`` scales and shifts its projector to the
encoder's first outputs. N patches, P pixels per side, K codes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

import vqkernels
from models.errors import UserError
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.tokenizer import Tokenizer

_PATCHES_PER_CODE = 16
_KMEANS_ITERATIONS = 10


def codebook_features(
    quantizer: QuantizerConfig,
    patches: Callable[[int], torch.Tensor],
    *,
    seed: int,
) -> torch.Tensor | None:  # [K, F]
    """The codes of a frozen codebook, as the config's ``features`` names them; None for another codebook.

    Args:
        quantizer: the config.
        patches: gives so many training patches, ``[N, 3, P, P]``.
        seed: of k-means.
    """
    if quantizer.codebook != "frozen":
        return None
    if quantizer.features != "patches":
        return _load_features(Path(quantizer.features), quantizer.num_codes)
    drawn = patches(quantizer.num_codes * _PATCHES_PER_CODE)
    white = whiten(drawn.flatten(1), quantizer.feature_dim)  # [N, F]
    result = vqkernels.kmeans(white, quantizer.num_codes, max_iter=_KMEANS_ITERATIONS, seed=seed)
    return result.centroids


def fit_codebook(
    tokenizer: Tokenizer,
    quantizer: QuantizerConfig,
    batches: Iterable[torch.Tensor],  # each [B, 3, S, S]
    *,
    seed: int,
) -> None:
    """Run the config's ``init`` on encoder outputs of as many batches as it takes."""
    if quantizer.init == "published":
        return
    wanted = quantizer.num_codes * _PATCHES_PER_CODE if quantizer.init == "kmeans" else 1
    device = next(tokenizer.parameters()).device

    def latents() -> Iterator[torch.Tensor]:  # each [B, D, h, w]
        vectors = 0
        for images in batches:
            z = tokenizer.latents(images.to(device))
            yield z
            vectors += z.shape[0] * z.shape[2] * z.shape[3]
            if vectors >= wanted:
                return

    with torch.no_grad():
        tokenizer.quantizer.fit_codebook(latents(), seed=seed)


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
    if features.dtype.kind not in "fiu":
        raise UserError(f"features: expected numbers in {path}, got {np.dtype(features.dtype).name}")
    return torch.from_numpy(features).float()
