"""What a tokenizer's codes mean, in pictures: ``python -m models.visualize TOKENIZER_RUN --out FOLDER``.

    reconstruction.png  images, their reconstruction and, with --prior-run, the prior's most probable code everywhere
                        given the true codes before it (SeQ-GAN's picture of how well codes can be modelled)
    prefix.png          with --prior-run: the first quarter, half, three quarters of the codes, the rest drawn
    groups.png          decoded from the first 1, 2, ... groups
    codebook.png        codes in the plane in which encoder vectors vary most, or by t-SNE: active and dead
    tokens.png          images with label maps: the map, and tokens in the colour of their code's most frequent class
    visualize.json      the figures: codes changed by noise, top-1 accuracy, active codes, purity of codes

B images, h w grid, G groups, K codes, D code dimension, C classes, M encoder vectors.
"""

from __future__ import annotations

import colorsys
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from torch.nn import functional as F

from models import command
from models.data.loader import Loader
from models.data.pixels import to_image
from models.data.source import open_source
from models.data.transforms import Crop
from models.errors import UserError
from models.priors.autoregressive import AutoregressivePrior
from models.priors.grouped import GroupedPrior
from models.priors.sample_random import SampleRandom
from models.priors.sampling import SamplingConfig, sample_codes
from models.priors.teacher import top_predictions
from models.priors.video import VideoPrior
from models.tokenizers import Tokenizer
from models.training.prior_data import check_tokenizer
from models.training.runs import load_config, load_prior, load_prior_config, load_tokenizer

_SIDE = 720  # pixels of codebook.png
_VECTORS = 2000  # encoder vectors in it
_ACTIVE, _DEAD, _VECTOR = (31, 119, 180), (214, 39, 40), (205, 205, 205)
_SHARES = (0.0, 0.25, 0.5, 0.75)  # of the codes that are given in prefix.png


class Visualizer:
    """A tokenizer on some images."""

    def __init__(self, tokenizer: Tokenizer, batch: dict[str, torch.Tensor]) -> None:
        self.tokenizer, self.batch = tokenizer, batch
        self.images = batch["image"]  # [B, 3, H, W]
        with torch.no_grad():
            self.latents = tokenizer.latents(self.images)  # [B, G D, h, w]
            self.codes = tokenizer.quantizer.encode(self.latents)  # [B, h, w] or [B, h, w, G]

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W]
        return self.tokenizer.decode(codes)

    @torch.no_grad()
    def sensitivity(self, noise: float, seed: int = 0) -> float:
        """Share of indices that change when normal noise of this deviation is added to pixels in [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        added = noise * torch.randn(self.images.shape, generator=generator)
        changed = self.tokenizer.encode(self.images + added.to(self.images)) != self.codes
        return changed.float().mean().item()

    def by_groups(self) -> list[torch.Tensor]:
        """Decoded from the first 1, 2, ... groups, each [B, 3, H, W]; only all of them for a single group."""
        groups = self.tokenizer.quantizer.codebook.shape[0]
        parts = []
        for kept in range(1, groups + 1):
            codes = self.codes.clone()
            if groups > 1:
                codes[..., kept:] = -1  # which a quantizer reads as nothing
            parts.append(self.decode(codes))
        return parts

    def by_prefix(
        self, prior: AutoregressivePrior | GroupedPrior, labels: torch.Tensor | None, seed: int = 0
    ) -> list[torch.Tensor]:  # each [B, 3, H, W]
        """The first codes as they are, the rest drawn by the prior."""
        flat = self.codes.flatten(1, 2)  # [B, L] or [B, L, G]
        parts = []
        for share in _SHARES:
            random = SampleRandom(seed, range(len(flat)), flat.device)
            start = flat[:, : int(share * prior.codes.length)]
            drawn = sample_codes(prior, SamplingConfig(), random, labels, start=start)
            parts.append(self.decode(drawn))
        return parts

    def code_use(self) -> torch.Tensor:  # [G, K]
        """How often each code is used on the images."""
        groups, num_codes, _ = self.tokenizer.quantizer.codebook.shape
        columns = self.codes.reshape(-1, groups).T
        return torch.stack([torch.bincount(column, minlength=num_codes) for column in columns])

    def plane(self, method: Literal["pca", "tsne"]) -> tuple[np.ndarray, np.ndarray]:  # [K, 2], [M, 2]
        """Codes of the first group, and encoder vectors, in two dimensions."""
        codebook = self.tokenizer.quantizer.codebook[0].detach().double()  # [K, D]
        vectors = self.latents.flatten(2).mT.flatten(0, 1)[:, : codebook.shape[1]].double()  # [M, D]
        vectors = vectors[:: max(len(vectors) // _VECTORS, 1)]
        if self.tokenizer.quantizer.metric == "cosine":
            vectors = F.normalize(vectors, dim=1)
        if method == "tsne":
            return _tsne(codebook.numpy(), vectors.numpy())
        centre = vectors.mean(0)
        axes = torch.linalg.svd(vectors - centre, full_matrices=False).Vh[:2].T  # [D, 2]
        return ((codebook - centre) @ axes).numpy(), ((vectors - centre) @ axes).numpy()

    def token_classes(self, num_classes: int) -> tuple[np.ndarray, float]:  # [B, h, w]
        """For each token the class that its code (of the first group) mostly lies on; and how often it does.

        A token lies on the most frequent class of its pixels; -1 where all of them are void.
        """
        maps = self.batch["map"]  # [B, H, W]
        codes = self.codes[..., 0] if self.codes.ndim == 4 else self.codes  # [B, h, w]
        counts = F.one_hot(maps.clamp(min=0), num_classes).float() * (maps >= 0).unsqueeze(3)  # [B, H, W, C]
        pooled = F.adaptive_avg_pool2d(counts.permute(0, 3, 1, 2), codes.shape[1:])  # [B, C, h, w]
        truth = torch.where(pooled.sum(1) > 0, pooled.argmax(1), -1)  # [B, h, w]
        seen = truth >= 0
        num_codes = self.tokenizer.quantizer.codebook.shape[1]
        table = torch.bincount(codes[seen] * num_classes + truth[seen], minlength=num_codes * num_classes)
        table = table.view(num_codes, num_classes)
        usual = torch.where(table.sum(1) > 0, table.argmax(1), -1)  # [K]
        purity = table.max(1).values.sum() / table.sum().clamp(min=1)
        return usual[codes].numpy(), purity.item()


def _tsne(codes: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.manifold import TSNE  # takes a second to import

    points = np.concatenate([codes, vectors])
    perplexity = min(30.0, (len(points) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return placed[: len(codes)], placed[len(codes) :]


def scatter(codes: np.ndarray, vectors: np.ndarray, active: np.ndarray) -> np.ndarray:  # [K, 2], [M, 2], [K]
    """Encoder vectors grey, codes in use blue, dead codes red; the middle 98 % of the vectors fill the picture."""
    low, high = np.percentile(vectors, [1, 99], axis=0)
    span = float(np.maximum(high - low, 1e-9).max())
    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(picture)
    kinds = ((vectors, _VECTOR, 1), (codes[~active], _DEAD, 2), (codes[active], _ACTIVE, 3))
    for points, colour, radius in kinds:
        placed = ((points - (low + high) / 2) / span * 0.8 + 0.5) * _SIDE
        # what lies outside is shown at the border
        for x, y in np.clip(placed, 4, _SIDE - 5):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(picture)


def class_colours(count: int) -> np.ndarray:  # [count + 1, 3] uint8
    """Colours well apart; the last one, black, is void."""
    turns = [
        colorsys.hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.3 * (i % 3 == 2)) for i in range(count)
    ]
    return np.array([*(np.array(turns).reshape(-1, 3) * 255), np.zeros(3)]).astype(np.uint8)


def rows_of(*rows: torch.Tensor) -> np.ndarray:  # each [B, 3, H, W] -> [rows * H, B * W, 3]
    """One row of images above the other."""
    return to_image(torch.cat([torch.cat(list(row.float()), dim=2) for row in rows], dim=1))


def visualize(
    run_dir: Path,
    out: Path,
    *,
    prior_run: Path | None = None,
    data: str | None = None,
    images: int = 8,
    image_size: int | None = None,
    noise: tuple[float, ...] = (0.01,),
    codebook: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
) -> dict[str, Any]:
    """Write the pictures; returns the figures. Arguments as of :func:`main`."""
    if images < 1:
        raise UserError(f"images: expected at least 1, got {images}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed: expected a number from 0 to 2**63 - 1, got {seed}")
    if not all(0 <= deviation < math.inf for deviation in noise):
        raise UserError(f"noise: expected numbers from 0 on, got {noise}")
    tokenizer, config = load_tokenizer(run_dir), load_config(run_dir)
    spec = config.data if data is None else data
    size = config.stages[0].image_size if image_size is None else image_size  # type: ignore[union-attr]
    if size < 1 or size % tokenizer.downsample:
        raise UserError(f"image_size: expected a multiple of {tokenizer.downsample} pixels, got {size}")
    source = open_source(spec, "val")
    crop = Crop(size=size, place="random" if source.drawn else "center", resize=None if source.drawn else size)
    with Loader(source, crop, batch_size=images, seed=seed) as loader:
        batch = loader.batch(1)
    if batch["image"].ndim != 4:
        raise UserError(f"data: expected images, got clips from {spec}")
    shown = Visualizer(tokenizer, batch)
    prior, labels = None, None
    if prior_run is not None:
        prior, labels = _prior(prior_run, run_dir, shown, tuple(source.labels))
    out.mkdir(parents=True, exist_ok=True)
    rows = [shown.images, shown.decode(shown.codes)]
    figures: dict[str, Any] = {"images": images, "data": spec, "image_size": size}
    figures["changed_by_noise"] = {str(deviation): shown.sensitivity(deviation, seed) for deviation in noise}
    if prior is not None:
        predicted = top_predictions(prior, shown.codes, labels)
        figures["top1_accuracy"] = (predicted == shown.codes).float().mean().item()
        rows.append(shown.decode(predicted))
        _save(out / "prefix.png", rows_of(shown.images, *shown.by_prefix(prior, labels, seed), rows[1]))
    _save(out / "reconstruction.png", rows_of(*rows))
    if tokenizer.quantizer.codebook.shape[0] > 1:
        _save(out / "groups.png", rows_of(shown.images, *shown.by_groups()))
    active = (shown.code_use() > 0).numpy()  # [G, K]
    figures["active_codes"] = float(active.mean())
    codes, vectors = shown.plane(codebook)
    _save(out / "codebook.png", scatter(codes, vectors, active[0]))
    if "map" in shown.batch:
        count = len(source.map_labels) or int(shown.batch["map"].max()) + 1
        classes, figures["purity"] = shown.token_classes(count)
        _save(out / "tokens.png", _token_picture(shown, classes, class_colours(count)))
    (out / "visualize.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _prior(
    prior_run: Path, run_dir: Path, shown: Visualizer, classes: tuple[str, ...]
) -> tuple[AutoregressivePrior | GroupedPrior, torch.Tensor | None]:
    """The prior, and the labels it takes of the images."""
    config = load_prior_config(prior_run)
    assert config.codes is not None
    check_tokenizer(run_dir, config.codes, prior_run)
    prior = load_prior(prior_run)
    if not isinstance(prior, AutoregressivePrior | GroupedPrior) or isinstance(prior, VideoPrior):
        raise UserError(f"prior_run: expected an autoregressive or grouped prior, got '{config.prior.kind}'")
    grid = tuple(shown.codes.shape[1:3])
    if grid != prior.codes.grid:
        raise UserError(f"image_size: expected a grid of {prior.codes.grid} codes for the prior, got {grid}")
    if not prior.codes.num_classes:
        return prior, None
    if classes == config.codes.labels:
        return prior, shown.batch["label"]
    # images of other classes than the prior's: none
    return prior, torch.full((len(shown.images),), prior.codes.num_classes)


def _token_picture(shown: Visualizer, classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Images, label maps, and tokens in the colours of their codes' classes, one row each."""
    height, width = shown.images.shape[2:]
    factor = height // classes.shape[1], width // classes.shape[2]
    tokens = colours[classes].repeat(factor[0], axis=1).repeat(factor[1], axis=2)  # [B, H, W, 3]
    maps = colours[shown.batch["map"].numpy()]
    return np.concatenate([rows_of(shown.images), np.concatenate(maps, axis=1), np.concatenate(tokens, axis=1)])


def _save(path: Path, picture: np.ndarray) -> None:  # [H, W, 3]
    Image.fromarray(picture).save(path)


def main(
    run_dir: Annotated[Path, tyro.conf.Positional],
    out: Path,
    prior_run: Path | None = None,
    data: str | None = None,
    images: int = 8,
    image_size: int | None = None,
    noise: tuple[float, ...] = (0.01,),
    codebook: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
) -> None:
    """Show what the codes of a tokenizer mean.

    Args:
        run_dir: folder of a tokenizer's run.
        out: folder for the pictures.
        prior_run: folder of the run of an autoregressive or grouped prior of its codes.
        data: whose held-out images to show; the tokenizer's own by default. "scenes" have label maps.
        images: how many.
        image_size: pixels per side; those of the tokenizer's training by default.
        noise: deviations of the noise whose effect on the codes is measured, of pixels in [-1, 1].
        codebook: how codes are brought to two dimensions.
        seed: of what is random.
    """
    figures = visualize(
        run_dir,
        out,
        prior_run=prior_run,
        data=data,
        images=images,
        image_size=image_size,
        noise=noise,
        codebook=codebook,
        seed=seed,
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main)))
