"""The measures that can be asked for by name, each fed with what a tokenizer made of a batch.

A score carries the name of the weights behind it: ``rfid``, ``fvd`` and ``lpips`` are computed with the published
files and nothing else; whatever another network or another file gives is ``fd_...`` or ``perceptual_...``.
B batch, T frames, n images (B, or B * T of clips), S pixels, G groups, K codes, C classes, D width of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from models.errors import UserError
from models.evaluation.subjects import Subject
from models.losses.perceptual import PerceptualLoss, UnitDistance, layer_set, lpips
from models.metrics.accumulator import Accumulator, ImageMeans
from models.metrics.codes import CodeCounts
from models.metrics.frechet import FrechetDistance, InceptionScore, PrecisionRecall, Similarity
from models.metrics.pixel import Psnr, ms_ssim, ssim, to_unit
from models.metrics.semantic import CodeClasses, cell_class_counts, cluster_scores
from models.pretrained import BACKBONES, Backbone, load_backbone

IMAGE_METRICS = ("psnr", "ssim", "ms_ssim", "lpips", "perceptual", "cosine")  # mean over images
SET_METRICS = ("rfid", "fid", "inception_score", "fd", "precision_recall", "fvd")  # of two sets
CODE_METRICS = ("codes", "semantic")
METRICS = IMAGE_METRICS + SET_METRICS + CODE_METRICS
# of generated images, which have no originals and no codes
SAMPLE_METRICS = ("fid", "inception_score", "fd", "precision_recall")
_SHORT = {"efficientnet_lite0": "efficientnet"}


class Seen(NamedTuple):
    """A batch, seen by the tokenizer."""

    index: torch.Tensor  # [n] number of each image in its set
    images: torch.Tensor  # [n, 3, S, S] in [-1, 1]
    reconstruction: torch.Tensor  # [n, 3, S, S], not clipped
    codes: torch.Tensor  # [n, h, w] or [n, h, w, G]
    frames: int | None = None  # T of clips
    maps: torch.Tensor | None = None  # [n, S, S]


class Networks:
    """Pretrained networks, each loaded once, with weights from one folder or from their usual places."""

    def __init__(self, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self._folder, self._device = folder, device
        self._loaded: dict[str, Backbone] = {}

    def get(self, name: str) -> Backbone:
        if name not in self._loaded:
            self._loaded[name] = load_backbone(name, self._path(name)).to(self._device)
        return self._loaded[name]

    def published(self, name: str, score: str) -> Backbone:
        """For a score that has its name from the network's published weights."""
        backbone = self.get(name)
        if not backbone.published:
            raise UserError(
                f"{score}: only computed with the published weights of {name}, {backbone.info.file} from "
                f"{backbone.info.source}; got others (--metrics fd --backbone {name} takes any)"
            )
        return backbone

    def _path(self, name: str) -> Path | None:
        """In the folder: a folder named like the network, or the published file; what comes with a package need not
        be there."""
        if self._folder is None:
            return None
        if (self._folder / name).exists():
            return self._folder / name
        return None if name == "efficientnet_lite0" else self._folder


class Measure(ABC):
    """One or more scores."""

    weights: str = ""  # of the network they come from
    names: tuple[str, ...] = ()  # of the scores that come from it

    @property
    @abstractmethod
    def parts(self) -> dict[str, Accumulator]:
        """What is kept between batches."""

    @abstractmethod
    def update(self, seen: Seen) -> None: ...

    @abstractmethod
    def compute(self) -> dict[str, float]: ...


class PsnrMeasure(Measure):
    """All three conventions."""

    def __init__(self) -> None:
        self.psnr = Psnr()

    @property
    def parts(self) -> dict[str, Accumulator]:
        return {"psnr": self.psnr}

    def update(self, seen: Seen) -> None:
        self.psnr.update(seen.index, to_unit(seen.images), to_unit(seen.reconstruction))

    def compute(self) -> dict[str, float]:
        return self.psnr.compute()


class ImageMeasure(Measure):
    """The mean of a function of an image and its reconstruction."""

    def __init__(self, name: str, score: Callable[[Seen], torch.Tensor], weights: str = "") -> None:
        self._name, self._score, self.weights, self.names = name, score, weights, (name,)
        self._means = ImageMeans(name)

    @property
    def parts(self) -> dict[str, Accumulator]:
        return {"means": self._means}

    def update(self, seen: Seen) -> None:
        self._means.update(seen.index, **{self._name: self._score(seen)})

    def compute(self) -> dict[str, float]:
        return self._means.compute()


class EmbeddingMeasure(Measure):
    """Everything that is made of one network's embeddings: each image goes through it once."""

    def __init__(self, backbone: Backbone, names: Mapping[str, str], width: int, classes: int = 0) -> None:
        """``names``: as what to report -> which of the scores of the parts."""
        self._backbone, self._names = backbone, dict(names)
        self.weights, self.names = described(backbone), tuple(names)
        wanted = set(names.values())
        self._distance = FrechetDistance(width) if "distance" in wanted else None
        self._similarity = Similarity() if "cosine" in wanted else None
        self._coverage = PrecisionRecall() if "precision" in wanted else None
        self._score = InceptionScore(classes) if "inception_score" in wanted else None

    @property
    def parts(self) -> dict[str, Accumulator]:
        parts = {
            "distance": self._distance,
            "similarity": self._similarity,
            "coverage": self._coverage,
            "score": self._score,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def update(self, seen: Seen) -> None:
        real = self.update_side("real", seen.index, seen.images)
        fake = self.update_side("fake", seen.index, seen.reconstruction)
        if self._similarity is not None:
            self._similarity.update(seen.index, real, fake)

    def update_side(self, side: str, index: torch.Tensor, images: torch.Tensor) -> torch.Tensor:  # -> [n, D]
        """Images of one set alone, "real" or "fake"; returns their embeddings."""
        embeddings = self._backbone.embed(images.clamp(-1, 1))
        pair = {"real": None, "fake": None, side: embeddings}
        if self._distance is not None:
            self._distance.update(pair["real"], pair["fake"])
        if self._coverage is not None:
            self._coverage.update(index, pair["real"], pair["fake"])
        if self._score is not None and side == "fake":
            self._score.update(index, self._backbone.classify(embeddings))
        return embeddings

    def compute(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in self.parts.values():
            found |= part.compute()
        return {reported: found[name] for reported, name in self._names.items()}


class VideoMeasure(Measure):
    """Frechet distance of clips and of their reconstructions."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self.weights, self.names = backbone, described(backbone), ("fvd",)
        self._distance = FrechetDistance(400, correction=0)

    @property
    def parts(self) -> dict[str, Accumulator]:
        return {"distance": self._distance}

    def update(self, seen: Seen) -> None:
        if seen.frames is None:
            raise UserError("fvd: expected clips of several frames, got images")
        clips = (images.unflatten(0, (-1, seen.frames)) for images in (seen.images, seen.reconstruction))
        self._distance.update(*(self._backbone.embed(clip.clamp(-1, 1)) for clip in clips))

    def compute(self) -> dict[str, float]:
        return {"fvd": self._distance.compute()["distance"]}


class CodesMeasure(Measure):
    """Utilization, perplexity and the share of the most used codes."""

    def __init__(self, codebook: torch.Tensor) -> None:  # [G, K, D]
        self._counts = CodeCounts(*codebook.shape[:2])

    @property
    def parts(self) -> dict[str, Accumulator]:
        return {"counts": self._counts}

    def update(self, seen: Seen) -> None:
        self._counts.update(seen.codes)

    def compute(self) -> dict[str, float]:
        return self._counts.compute()


class SemanticMeasure(Measure):
    """Uniqueness, silhouette and Davies-Bouldin index of the first group's codes, by the classes of label maps."""

    def __init__(self, codebook: torch.Tensor, downsample: int, classes: int, high: int | None) -> None:
        self._codes = codebook[0].detach().cpu()  # [K, D]
        self._downsample, self._classes, self._high = downsample, classes, high
        self._counts = CodeClasses(len(self._codes), classes)

    @property
    def parts(self) -> dict[str, Accumulator]:
        return {"counts": self._counts}

    def update(self, seen: Seen) -> None:
        if seen.maps is None:
            raise UserError("semantic: expected data with label maps, got images alone")
        codes = seen.codes if seen.codes.dim() == 3 else seen.codes[..., 0]
        self._counts.update(codes, cell_class_counts(seen.maps, self._downsample, self._classes))

    def compute(self) -> dict[str, float]:
        scores = self._counts.compute() | cluster_scores(self._codes, self._counts.dominant)
        if self._high is not None:
            high = cluster_scores(self._codes[:, : self._high], self._counts.dominant)
            scores |= {f"{name}_high": value for name, value in high.items()}
        return scores


def build_measures(
    names: Sequence[str],
    backbone: str,
    networks: Networks,
    *,
    subject: Subject | None = None,
    classes: int = 0,
    high: int | None = None,
) -> dict[str, Measure]:
    """The measures of these names; several that share a network's embeddings become one.

    Args:
        names: some of ``METRICS``.
        backbone: network of "perceptual", "cosine", "fd" and "precision_recall".
        networks: where networks come from.
        subject: the tokenizer, for scores of codes.
        classes: of the label maps, for "semantic".
        high: leading dimensions of a code that are its semantic part; scored beside the whole code.
    """
    if backbone not in BACKBONES:
        raise UserError(f"backbone: expected one of {sorted(BACKBONES)}, got {backbone!r}")
    short = _SHORT.get(backbone, backbone)
    measures: dict[str, Measure] = {}
    wanted: dict[str, dict[str, str]] = {}  # network -> what is reported -> of its embeddings
    for name in names:
        if name == "psnr":
            measures[name] = PsnrMeasure()
        elif name in ("ssim", "ms_ssim"):
            score = ssim if name == "ssim" else ms_ssim
            measures[name] = ImageMeasure(
                name, lambda seen, score=score: score(to_unit(seen.images), to_unit(seen.reconstruction))
            )
        elif name == "lpips":
            vgg16 = networks.published("vgg16", "lpips")
            measures[name] = _perceptual("lpips", lpips(vgg16), described(vgg16) + "; heads of torchmetrics")
        elif name == "perceptual":
            network = networks.get(backbone)
            heads = {layer: torch.ones(1) for layer in layer_set(backbone, "lpips")}
            measures[name] = _perceptual(f"perceptual_{short}", UnitDistance(network, heads), described(network))
        elif name in ("rfid", "fid"):
            wanted.setdefault("inception", {})[name] = "distance"
            networks.published("inception", name)
        elif name == "inception_score":
            wanted.setdefault("inception", {}).update({part: part for part in (name, f"{name}_std")})
            networks.published("inception", name)
        elif name == "fvd":
            measures[name] = VideoMeasure(networks.published("i3d", "fvd"))
        elif name == "codes":
            measures[name] = CodesMeasure(_codebook(subject, name))
        elif name == "semantic":
            if not classes:
                raise UserError("semantic: expected data with label maps and named classes, got none")
            codebook = _codebook(subject, name)
            assert subject is not None
            measures[name] = SemanticMeasure(codebook, subject.downsample, classes, high)
        else:
            parts = {"fd": ("distance",), "cosine": ("cosine",), "precision_recall": ("precision", "recall")}[name]
            reported = {f"{'fd' if part == 'distance' else part}_{short}": part for part in parts}
            wanted.setdefault(backbone, {}).update(reported)
    for network, scores in wanted.items():
        loaded = networks.get(network)
        width, classes = _widths(loaded)
        measures[f"embedding_{network}"] = EmbeddingMeasure(loaded, scores, width, classes)
    return measures


def described(backbone: Backbone) -> str:
    """A network and its weights, in one line."""
    info = backbone.info
    which = info.file if backbone.published else f"other weights than {info.file}"
    return f"{info.name}: {which}, {info.licence}"


def _perceptual(name: str, loss: PerceptualLoss, weights: str) -> ImageMeasure:
    def score(seen: Seen) -> torch.Tensor:
        return loss.to(seen.images.device).per_image(seen.reconstruction.clamp(-1, 1), seen.images)

    return ImageMeasure(name, score, weights)


def _codebook(subject: Subject | None, name: str) -> torch.Tensor:
    if subject is None or subject.codebook is None:
        raise UserError(f"{name}: expected a tokenizer with a codebook, got none")
    return subject.codebook


@torch.no_grad()
def _widths(backbone: Backbone) -> tuple[int, int]:
    """Of the embedding, and the number of classes, found out with one image."""
    embedding = backbone.embed(torch.zeros(1, 3, backbone.size, backbone.size, device=backbone.mean.device))
    try:
        return embedding.shape[1], backbone.classify(embedding).shape[1]
    except UserError:  # has none
        return embedding.shape[1], 0
