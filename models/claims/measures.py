"""What is measured of runs that are done. B batch, h w grid, G groups, K codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.claims.claim import Made
from models.data.loader import Loader
from models.data.photos import load_photos
from models.data.pixels import to_tensor
from models.data.sample import SplitName
from models.data.source import open_source
from models.data.street.classes import CLASSES
from models.data.transforms import Crop
from models.evaluation.data_set import DataSetConfig, evaluate_tokenizer
from models.evaluation.photos import reconstruct, tokenize
from models.losses.semantic import high_levels, level_weights
from models.metrics.codes import CodeCounts, code_use
from models.metrics.frechet import FrechetDistance
from models.metrics.pixel import Psnr, to_unit
from models.metrics.semantic import TAUS, CodeClasses, cell_class_counts, cluster_scores
from models.pretrained import load_backbone
from models.tokenizers.codec import Codec
from models.training.concept_run import ConceptRun
from models.training.run_log import read_metrics
from models.training.runs import load_config, load_tokenizer
from models.training.tokenizer_run import TokenizerRun

_BATCH = 32
_SIDE = 64  # pixels that images are scaled to for the network: pocket images are no larger


def photographs(made: Made) -> dict[str, float]:
    """Reconstruction of whole held-out photographs; use of codes, in per cent, over the training photographs."""
    tokenizer, psnr = load_tokenizer(made.tokenizer), Psnr()
    counts = CodeCounts(*tokenizer.quantizer.codebook.shape[:2])
    for number, photo in enumerate(load_photos(load_config(made.tokenizer).data)):
        tokens = tokenize(tokenizer, photo)
        if photo.split == "train":
            counts.update(tokens.indices)
        else:
            shown = reconstruct(tokenizer, photo, tokens)
            psnr.update(torch.tensor([number]), to_unit(to_tensor(photo.image)), to_unit(shown))
    use = code_use(counts.counts)
    return {"psnr": psnr.compute()["psnr"], "usage": 100 * use.utilization, "perplexity": use.perplexity}


def prefixes(made: Made) -> dict[str, float]:
    """``psnr_1`` to ``psnr_G`` of whole held-out photographs: the first groups alone are decoded."""
    tokenizer = load_tokenizer(made.run)
    groups = len(tokenizer.quantizer.codebook)
    photos = [photo for photo in load_photos(load_config(made.run).data) if photo.split == "val"]
    tokens = [tokenize(tokenizer, photo) for photo in photos]
    found = {}
    for kept in range(1, groups + 1):
        psnr = Psnr()
        for number, (photo, seen) in enumerate(zip(photos, tokens, strict=True)):
            indices = seen.indices.clone()
            indices[..., kept:] = -1  # decoded as zeros
            shown = reconstruct(tokenizer, photo, seen._replace(indices=indices))
            psnr.update(torch.tensor([number]), to_unit(to_tensor(photo.image)), to_unit(shown))
        found[f"psnr_{kept}"] = psnr.compute()["psnr"]
    return found


def scenes(made: Made) -> dict[str, float]:
    """Held-out street scenes: reconstruction, use of codes, and what the codes stand for (SGC-VQGAN's tables).

    ``silhouette`` and ``davies_bouldin`` are of the semantic part of the codes, the first quarter unless the run says
    otherwise, ``..._all`` of whole codes.
    """
    config, tokenizer = load_config(made.run), load_tokenizer(made.run)
    assert isinstance(config, TokenizerRun)
    groups, num_codes, dim = tokenizer.quantizer.codebook.shape
    psnr, counts, classes = Psnr(), CodeCounts(groups, num_codes), CodeClasses(num_codes, len(CLASSES))
    for index, images, maps in held_out(config):
        with torch.no_grad():
            indices = tokenizer.encode(images)
            psnr.update(index, to_unit(images), to_unit(tokenizer.decode(indices)))
        counts.update(indices)
        classes.update(indices, cell_class_counts(maps, tokenizer.downsample, len(CLASSES)))
    codes = tokenizer.quantizer.codebook[0].detach()
    weights = level_weights(4) if config.semantics is None else config.semantics.loss.weights
    sigma = 0.5 if config.semantics is None else config.semantics.sigma
    high = high_levels(weights, sigma) * dim // len(weights)
    part, whole = (cluster_scores(codes[:, :width], classes.dominant) for width in (high, dim))
    use = code_use(counts.counts)
    uniqueness = classes.compute()
    return {
        "psnr": psnr.compute()["psnr"],
        "usage": 100 * use.utilization,
        "perplexity": use.perplexity,
        **{f"uniqueness_{tau}": 100 * uniqueness[f"uniqueness_{tau}"] for tau in TAUS},
        **part,
        **{f"{name}_all": value for name, value in whole.items()},
    }


def held_out(config: TokenizerRun) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Numbers [B], images [B, 3, S, S] and label maps [B, S, S] of all held-out scenes."""
    size = config.stage.image_size
    crop = Crop(size=size, resize=size, place="center")
    source = open_source(config.data, "val")
    with Loader(source, crop, batch_size=_BATCH, shuffle=False) as loader:
        return [(batch["index"], batch["image"], batch["map"]) for batch in loader]


def likelihood(made: Made) -> dict[str, float]:
    """Held-out loss of a prior, in nats, and its ratio to what counting says of the same codes."""
    last = read_metrics(made.run)[-1]
    nll = last["val_nll"]
    return {
        "nll": nll,
        "unigram": nll / last["val_unigram_ratio"],
        "unigram_ratio": last["val_unigram_ratio"],
        "bigram_ratio": last["val_bigram_ratio"],
    }


def data_set(made: Made) -> dict[str, float]:
    """Paper scale: middle crops of the held-out side of the data, by what needs no further weights."""
    config, tokenizer = load_config(made.run), load_tokenizer(made.run)
    assert isinstance(config, TokenizerRun)
    options = DataSetConfig(data=config.data, size=config.stage.image_size, metrics=("psnr", "ssim", "codes"))
    scores = evaluate_tokenizer(tokenizer, options, made.run / "claims.json")["scores"]
    return {
        "psnr": scores["psnr"],
        "psnr_dataset": scores["psnr_dataset"],
        "psnr_luma": scores["psnr_luma"],
        "ssim": 100 * scores["ssim"],
        "usage": 100 * scores["utilization"],
    }


class Apart:
    """Frechet distance of EfficientNet's embeddings between one set of images and others."""

    def __init__(self, real: torch.Tensor) -> None:  # [N, 3, S, S] in [-1, 1]
        self._network = load_backbone("efficientnet_lite0")
        self._network.size = _SIDE
        self._real = self._embedded(real)

    def __call__(self, made: torch.Tensor) -> float:  # [N, 3, S, S]
        distance = FrechetDistance(self._real.shape[1])
        distance.update(self._real, self._embedded(made))
        return distance.compute()["distance"]

    @torch.no_grad()
    def _embedded(self, images: torch.Tensor) -> torch.Tensor:  # [N, D]
        return torch.cat([self._network.embed(part.clamp(-1, 1)) for part in images.split(_BATCH)])


@torch.no_grad()
def decoded(codec: Codec, codes: torch.Tensor) -> torch.Tensor:  # [N, h, w] or [N, h, w, G] -> [N, 3, S, S]
    """Images of codes."""
    return torch.cat([codec.images(part) for part in codes.split(_BATCH)])


def code_array(folder: Path, split: SplitName, count: int, kind: str = "codes") -> torch.Tensor:  # [N, ...]
    """Codes or latents of the first samples of a folder."""
    source = open_source(f"{kind}:{folder}", split)
    samples = [source.read(index) for index in range(min(count, len(source)))]
    values = torch.from_numpy(np.stack([sample.image[0] for sample in samples if sample is not None]))
    return values.long() if kind == "codes" else values.float()


def changed_share(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Share of tokens that differ, in per cent."""
    total = sum(tokens.numel() for tokens in first)
    changed = sum(int((a != b).sum()) for a, b in zip(first, second, strict=True))
    return 100 * changed / total if total else math.nan


def crops(config: TokenizerRun | ConceptRun, size: int, count: int) -> torch.Tensor:  # [N, 3, S, S]
    """Held-out crops, always the same."""
    source = open_source(config.data, "val")
    with Loader(source, Crop(size=size), batch_size=count, seed=0) as loader:
        return loader.batch(1)["image"]


def mean_psnr(images: torch.Tensor, shown: torch.Tensor) -> float:  # [N, 3, S, S] each
    """Mean over images, in dB."""
    psnr = Psnr()
    psnr.update(torch.arange(len(images)), to_unit(images), to_unit(shown))
    return psnr.compute()["psnr"]
