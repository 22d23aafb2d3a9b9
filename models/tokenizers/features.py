"""How a codebook starts: the explicit step between building a tokenizer and training it.

``init="published"`` leaves the codes as their module draws them, ``"kmeans"`` clusters encoder outputs. A frozen
codebook holds features: of whitened training patches, or of a pretrained network as VQGAN-LC has them (its map
pooled to 4 x 4 vectors an image), clustered, clustered class by class, or drawn; ``"matched"`` scales and shifts its
projector to the encoder's first outputs. N vectors, P pixels per side, K codes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import vqkernels
from models.errors import UserError, check_file, first_line
from models.pretrained import BACKBONES, load_backbone
from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.config import QuantizerConfig
from models.tokenizers.tokenizer import Tokenizer

_VECTORS_PER_CODE = 16
_KMEANS_ITERATIONS = 10
_GRID = 4  # vectors per side that a pretrained network's map is pooled to

# batches of training crops without end, of so many pixels per side: "image" [B, 3, P, P], perhaps "label" [B]
Crops = Callable[[int], Iterator[Mapping[str, torch.Tensor]]]


def codebook_features(
    quantizer: QuantizerConfig, crops: Crops, *, patch_size: int, image_size: int, seed: int
) -> torch.Tensor | None:  # [K, F]
    """The codes of a frozen codebook, as the config's ``features`` names them; None for another codebook.

    Args:
        quantizer: the config.
        crops: training crops.
        patch_size: pixels per side of a token.
        image_size: pixels per side of a training crop.
        seed: of everything random.
    """
    if quantizer.codebook != "frozen":
        return None
    generator = torch.Generator().manual_seed(seed)
    if quantizer.features == "random":
        scale = 1 / quantizer.num_codes
        return (torch.rand(quantizer.num_codes, quantizer.feature_dim, generator=generator) * 2 - 1) * scale
    if quantizer.features == "patches":
        vectors, labels = _patches(quantizer, crops(patch_size))
    elif quantizer.features in BACKBONES:
        vectors, labels = _network_features(quantizer, crops(image_size))
    else:
        return _load_features(Path(quantizer.features), quantizer.num_codes)
    if quantizer.features_pick == "sample":
        return vectors[torch.randperm(len(vectors), generator=generator)[: quantizer.num_codes]]
    if quantizer.features_pick == "kmeans_per_class":
        return _clustered_by_class(vectors, labels, quantizer.num_codes, seed)
    return vqkernels.kmeans(vectors, quantizer.num_codes, max_iter=_KMEANS_ITERATIONS, seed=seed).centroids


def fit_codebook(
    tokenizer: Tokenizer | ConceptTokenizer,
    quantizer: QuantizerConfig,
    batches: Iterable[torch.Tensor],  # each [B, 3, S, S]
    *,
    seed: int,
) -> None:
    """Run the config's ``init`` on encoder outputs of as many batches as it takes."""
    if quantizer.init == "published":
        return
    wanted = quantizer.num_codes * _VECTORS_PER_CODE if quantizer.init == "kmeans" else 1
    device = next(tokenizer.parameters()).device

    def latents() -> Iterator[torch.Tensor]:  # each [B, D, h, w]
        vectors = 0
        for images in batches:
            z = tokenizer.latents(images.to(device))
            yield z
            vectors += z.shape[0] * z.shape[2] * z.shape[3]
            if vectors >= wanted:
                return

    assert tokenizer.quantizer is not None
    with torch.no_grad():
        tokenizer.quantizer.fit_codebook(latents(), seed=seed)


def _patches(
    quantizer: QuantizerConfig, batches: Iterator[Mapping[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [N, F], [N]
    """Whitened training patches."""
    wanted = quantizer.num_codes * _VECTORS_PER_CODE
    rows, labels = _taken((batch["image"].flatten(1), batch.get("label")) for batch in _until(batches, wanted, 1))
    return whiten(rows[:wanted], quantizer.feature_dim), None if labels is None else labels[:wanted]


@torch.no_grad()
def _network_features(
    quantizer: QuantizerConfig, batches: Iterator[Mapping[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [N, F], [N]
    """One layer of a pretrained network, pooled to 4 x 4 vectors an image."""
    backbone = load_backbone(quantizer.features, quantizer.features_file)
    layer = quantizer.features_layer or [name for name in backbone.layers if name != "logits"][-1]
    size = quantizer.features_size or backbone.size

    def vectors(images: torch.Tensor) -> torch.Tensor:  # [B, 3, P, P] -> [16B, F]
        scaled = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
        pooled = F.adaptive_avg_pool2d(backbone.features(scaled, [layer])[layer].float(), _GRID)  # [B, F, 4, 4]
        return pooled.flatten(2).transpose(1, 2).flatten(0, 1)

    wanted, each = quantizer.num_codes * _VECTORS_PER_CODE, _GRID * _GRID
    pairs = (
        (vectors(batch["image"]), None if "label" not in batch else batch["label"].repeat_interleave(each))
        for batch in _until(batches, wanted, each)
    )
    return _taken(pairs)


def _until(
    batches: Iterator[Mapping[str, torch.Tensor]], wanted: int, each: int
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Batches up to so many vectors, ``each`` an image."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["image"]) * each
        if seen >= wanted:
            return


def _taken(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [N, F], [N]
    rows, labels = zip(*pairs, strict=True)
    return torch.cat(rows), None if labels[0] is None else torch.cat(labels)


def _clustered_by_class(
    vectors: torch.Tensor, labels: torch.Tensor | None, num_codes: int, seed: int
) -> torch.Tensor:  # [K, F]
    """As many centres of every class, as VQGAN-LC's released script makes them."""
    if labels is None:
        raise UserError(
            "features_pick: expected 'kmeans' or 'sample' for data without classes, got 'kmeans_per_class'"
        )
    classes = labels.unique()
    if num_codes % len(classes):
        raise UserError(f"num_codes: expected a multiple of {len(classes)} classes, got {num_codes}")
    each = num_codes // len(classes)
    parts = []
    for number in classes:
        rows = vectors[labels == number]
        if len(rows) < each:
            raise UserError(f"num_codes: expected at most {len(rows)} codes for class {number}, got {each}")
        parts.append(vqkernels.kmeans(rows, each, max_iter=_KMEANS_ITERATIONS, seed=seed).centroids)
    return torch.cat(parts)


def whiten(x: torch.Tensor, dim: int) -> torch.Tensor:  # [N, F'] -> [N, dim] float32
    """The ``dim`` leading principal components, each scaled to unit variance."""
    if dim > x.shape[1]:
        raise ValueError(f"feature_dim: expected at most the {x.shape[1]} values of a patch, got {dim}")
    centered = x.double() - x.double().mean(dim=0)  # [N, F']
    variance, direction = torch.linalg.eigh(centered.mT @ centered / len(x))  # ascending [F'], [F', F']
    scale = variance[-dim:].clamp(min=1e-12).rsqrt()
    return (centered @ direction[:, -dim:] * scale).float()


def _load_features(path: Path, num_codes: int) -> torch.Tensor:  # [K, F]
    check_file(path)
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"features: {path} is not a readable .npy file ({first_line(error)})") from error
    if not isinstance(features, np.ndarray):
        raise UserError(f"features: expected one array in {path}, got an archive of them")
    if features.ndim != 2 or len(features) != num_codes or not features.shape[1]:
        raise UserError(f"features: expected [{num_codes}, F] in {path}, got {list(features.shape)}")
    if features.dtype.kind not in "fiu":
        raise UserError(f"features: expected numbers in {path}, got {np.dtype(features.dtype).name}")
    rows = torch.from_numpy(features).float()
    if not bool(rows.isfinite().all()):
        raise UserError(f"features: expected finite numbers of float32 in {path}, got others")
    return rows
