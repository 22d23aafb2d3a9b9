"""Between arrays of bytes and tensors in [-1, 1]. B batch, H W pixels."""

from __future__ import annotations

import numpy as np
import torch


def to_float(pixels: torch.Tensor) -> torch.Tensor:  # uint8 -> float32 in [-1, 1]
    if pixels.device.type != "cpu":
        return pixels.float().div_(127.5).sub_(1)
    # the same bits by one thread: so little work is not worth waiting for a second one while the cores are busy
    values = pixels.numpy().astype(np.float32)
    values /= 127.5
    values -= 1
    return torch.from_numpy(values)


def to_tensor(image: np.ndarray) -> torch.Tensor:  # [H, W, 3] uint8 -> [1, 3, H, W] float32 in [-1, 1]
    return to_float(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None]))


def to_image(tensor: torch.Tensor) -> np.ndarray:  # [3, H, W] in [-1, 1] -> [H, W, 3] uint8
    pixels = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
