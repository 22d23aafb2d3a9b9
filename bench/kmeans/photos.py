"""Features of real patches: every 8 x 8 window of the photographs that scikit-learn brings along."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

_NAMES = ("china.jpg", "flower.jpg")
_SIDE = 8


def patch_features(n: int, d: int, seed: int) -> torch.Tensor:  # [N, D] float32
    """The ``d`` leading principal components, each of unit variance, of ``n`` patches in random order."""
    datasets = importlib.import_module("sklearn.datasets")
    windows = [
        sliding_window_view(datasets.load_sample_image(name), (_SIDE, _SIDE), axis=(0, 1)).reshape(-1, 3 * _SIDE**2)
        for name in _NAMES
    ]
    drawn = np.random.default_rng(seed).permutation(sum(map(len, windows)))[:n]
    first, second = windows
    patches = np.where((drawn < len(first))[:, None], first[drawn % len(first)], second[drawn % len(second)])
    x = torch.from_numpy(patches).double() / 255  # [N, F]
    x -= x.mean(dim=0)
    variance, direction = torch.linalg.eigh(x.T @ x / n)  # ascending
    return (x @ direction[:, -d:] * variance[-d:].rsqrt()).float()
