"""Random numbers of samples, each from a stream of its own.

A sample is named by (seed, number); its stream depends on nothing else. So batches of any size, on any number of
processes and devices, draw the same samples. B samples of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class SampleRandom:
    """Streams of a batch of samples. Each call draws on, so that one object serves prior and decoder in turn.

    Args:
        seed: of all samples; from 0 to 2^64 - 1.
        samples: numbers of the samples of this batch; from 0 to 2^64 - 1.
        device: where the numbers are wanted; they are drawn on the CPU.
    """

    def __init__(self, seed: int, samples: Sequence[int], device: torch.device | str = "cpu") -> None:
        for name, numbers in (("seed", [seed]), ("samples", samples)):
            outside = next((number for number in numbers if not 0 <= number < 2**64), None)
            if outside is not None:
                raise ValueError(f"{name}: expected 0 to 2^64 - 1, got {outside}")
        self.device = torch.device(device)
        if not samples:
            raise ValueError("samples: expected at least one, got none")
        keys = [np.array([seed, number], dtype=np.uint64) for number in samples]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def __len__(self) -> int:
        return len(self._streams)

    def uniform(self, *shape: int) -> torch.Tensor:  # [B, *shape] float64
        """Uniform between 0 and 1, both excluded; multiples of 2^-33."""
        drawn = [stream.integers(2**32, size=shape) for stream in self._streams]
        return self._stack(drawn).to(torch.float64).add(0.5).mul(2.0**-32)

    def normal(self, *shape: int) -> torch.Tensor:  # [B, *shape] float32
        """Normal with mean 0 and variance 1."""
        drawn = [stream.standard_normal(size=shape, dtype=np.float32) for stream in self._streams]
        return self._stack(drawn)

    def _stack(self, drawn: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(drawn)).to(self.device)
