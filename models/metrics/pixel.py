"""PSNR in the three conventions in use, SSIM and MS-SSIM, image by image.

Pixels are in [0, 1], clipped and not rounded to 8 bits; float64, where it matters. B batch, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from models.metrics.accumulator import Rows

_LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601 at 219 levels, as in MATLAB's rgb2ycbcr
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al., 2003
MS_SSIM_SIDE = _WINDOW * 2 ** (len(_SCALES) - 1)  # fewer pixels leave no window at the last scale


def to_unit(images: torch.Tensor) -> torch.Tensor:  # [-1, 1] -> float64 in [0, 1]
    """As all scores here take them."""
    return ((images.double() + 1) / 2).clamp(0, 1)


def squared_error(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B]
    return (images - reconstruction).square().flatten(1).mean(1)


def luma(images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 1, H, W]
    """Y of YCbCr without its offset; it covers 219 of 255 levels."""
    weight = images.new_tensor(_LUMA)[:, None, None] / 255
    return (images * weight).sum(1, keepdim=True)


def decibels(error: float) -> float:
    """PSNR of a squared error of pixels in [0, 1]."""
    return -10 * math.log10(error) if error else math.inf


class Psnr(Rows):
    """Three PSNRs: ``psnr`` (of RGB, mean over images; the convention of LlamaGen and of all tables here),
    ``psnr_dataset`` (of the mean squared error of all images, MGVQ; never above the first) and ``psnr_luma`` (of Y,
    mean over images, VQGAN-LC; decibels above the others, for it leaves colour out and covers 219 of 255 levels).
    """

    def __init__(self) -> None:
        super().__init__("error", "error_luma")

    def update(self, index: torch.Tensor, images: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Images ``[B, 3, H, W]`` in [0, 1]; ``index`` [B] numbers them."""
        self.append(
            index,
            error=squared_error(images, reconstruction).double(),
            error_luma=squared_error(luma(images), luma(reconstruction)).double(),
        )

    def of_images(self) -> list[float]:
        """``psnr`` of every image."""
        return [decibels(error) for error in self.column("error").tolist()]

    def compute(self) -> dict[str, float]:
        return {
            "psnr": _mean(self.of_images()),
            "psnr_dataset": decibels(self.mean("error")) if len(self) else math.nan,
            "psnr_luma": _mean([decibels(error) for error in self.column("error_luma").tolist()]),
        }


def ssim(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B]
    """Mean over RGB and over all Gaussian windows of 11 pixels (sigma 1.5) that lie inside the image."""
    _check_sides(images, _WINDOW, "ssim")
    structure, contrast = _ssim_maps(images, reconstruction)
    return (structure * contrast).flatten(1).mean(1)


def ms_ssim(images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B]
    """Product over five scales of contrast, at the last one of SSIM, each to its published power."""
    _check_sides(images, MS_SSIM_SIDE, "ms_ssim")
    product = torch.ones(len(images), dtype=images.dtype, device=images.device)
    for scale, power in enumerate(_SCALES):
        structure, contrast = _ssim_maps(images, reconstruction)
        last = scale == len(_SCALES) - 1
        value = (structure * contrast if last else contrast).flatten(1).mean(1)
        product = product * value.clamp(min=0) ** power
        if not last:
            images, reconstruction = F.avg_pool2d(images, 2), F.avg_pool2d(reconstruction, 2)
    return product


def _ssim_maps(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of SSIM, of luminance and of contrast and structure, of every window that lies inside."""
    mean_a, mean_b, square_a, square_b, product = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    variance_a, variance_b = square_a - mean_a.square(), square_b - mean_b.square()
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    return luminance, (2 * (product - mean_a * mean_b) + _C2) / (variance_a + variance_b + _C2)


def _blur(x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H - 10, W - 10]
    channels = x.shape[1]
    place = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    kernel = (-(place.square()) / (2 * _SIGMA**2)).exp()
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, _WINDOW)
    return F.conv2d(F.conv2d(x, kernel, groups=channels), kernel.mT, groups=channels)


def _check_sides(images: torch.Tensor, smallest: int, name: str) -> None:
    if min(images.shape[-2:]) < smallest:
        raise ValueError(f"{name}: expected images of at least {smallest} pixels, got {list(images.shape[-2:])}")


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
