"""What a coarse pass in reduced precision leaves undecided, without a kernel: ``python -m bench.gpu.coarse``.

Prints shares of vectors by arithmetic, for Gaussian vectors and codes and for patches of photographs and centroids.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

import vqkernels
from bench.kmeans.photos import patch_features
from vqkernels.testing import LookupProblem, lookup_problem

_ROWS = 256  # at a time


@dataclass(frozen=True)
class Arithmetic:
    """How inputs are rounded: to how many bits, in how many pieces."""

    dtype: torch.dtype | None  # None: to the 10 bits of TF32
    pieces: int
    unit: float  # relative error of a product


ARITHMETICS = {
    "bf16": Arithmetic(torch.bfloat16, 1, 2.0**-7),
    "tf32": Arithmetic(None, 1, 2.0**-10),
    "fp16": Arithmetic(torch.float16, 1, 2.0**-10),
    "fp16 pairs": Arithmetic(torch.float16, 2, 2.0**-20),
}


def undecided(x: torch.Tensor, codebook: torch.Tensor, arithmetic: Arithmetic) -> dict[str, float]:
    """Shares of vectors by what the scores ``|c|^2 / 2 - x.c`` of a coarse pass say about them.

    A code is a candidate if its score is within twice the bound of the lowest; the bound is the rounding of the
    inputs and of an accumulation that may truncate.

    Args:
        x: vectors ``[N, D]``, float32.
        codebook: codes ``[K, D]``, float32.
        arithmetic: one of :data:`ARITHMETICS`.
    """
    centre = codebook.mean(0, dtype=torch.float64)
    scale = float((codebook - centre).abs().max())  # a power of two in a kernel; any factor cancels here
    rows, codes = ((tensor.double() - centre) / scale for tensor in (x, codebook))
    half_norms = codes.square().sum(1) / 2
    parts = [_pieces(tensor.float(), arithmetic) for tensor in (rows, codes)]
    radius = codes.norm(dim=1).max()
    unit = arithmetic.unit + 4 * x.shape[1] * 2.0**-23
    wrong, several, candidates = 0, 0, 0
    for start in range(0, x.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        truth = (half_norms - rows[part] @ codes.t()).argmin(1)
        # low times low is what a kernel leaves out
        products = ((i, j) for i in range(arithmetic.pieces) for j in range(arithmetic.pieces - i))
        score = half_norms.float() - sum(
            (parts[0][i][part] @ parts[1][j].t() for i, j in products), torch.tensor(0.0, device=x.device)
        )
        bound = unit * (rows[part].norm(dim=1) * radius + half_norms.max())
        near = (score <= (score.amin(1) + 2 * bound)[:, None]).sum(1)
        wrong += int((score.argmin(1) != truth).sum())
        several += int((near > 1).sum())
        candidates += int(near.sum())
    n = x.shape[0]
    return {"wrong": wrong / n, "more than one candidate": several / n, "candidates": candidates / n}


def _pieces(tensor: torch.Tensor, arithmetic: Arithmetic) -> list[torch.Tensor]:
    """Float32 tensors that hold the rounded pieces; their products are exact in float32."""
    pieces, rest = [], tensor
    for _ in range(arithmetic.pieces):
        piece = _tf32(rest) if arithmetic.dtype is None else rest.to(arithmetic.dtype).float()
        pieces.append(piece)
        rest = rest - piece
    return pieces


def _tf32(tensor: torch.Tensor) -> torch.Tensor:
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _problems(n: int, k: int) -> Iterator[tuple[str, LookupProblem]]:
    for d in (4, 8, 16, 32, 64):
        yield f"gaussian D={d}", lookup_problem("gaussian", n, k, d)
    for d in (8, 16, 64):
        x = patch_features(8 * k, d, 0)
        centroids = vqkernels.kmeans(x, k, max_iter=5, init="random").centroids
        yield f"photographs D={d}", LookupProblem(x[:n], centroids)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.coarse", description=__doc__)
    parser.add_argument("--vectors", type=int, default=4096, help="default %(default)s")
    parser.add_argument("--codes", type=int, default=16384, help="default %(default)s")
    args = parser.parse_args(argv)
    for name, problem in _problems(args.vectors, args.codes):
        shares = {unit: undecided(*problem, arithmetic) for unit, arithmetic in ARITHMETICS.items()}
        print(json.dumps({name: shares}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
