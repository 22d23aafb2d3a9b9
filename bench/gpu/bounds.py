"""How tensor cores add, through the kernels that rely on it: products of an adversary against what proofs assume."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.gpu.adversary import Adversary, adversary, share
from bench.gpu.context import Context, Unavailable

LOOKUP_DIMS = (4, 8, 16, 32, 64, 128, 256, 768)  # one of every layout, and long sums
ENTROPY_DIMS = (8, 32, 64, 256)


class Sums(NamedTuple):
    """Products of an adversary as some kernel adds them, and the error that is assumed of it."""

    problem: Adversary
    computed: torch.Tensor  # [N, K]
    bound: float  # over the sum of magnitudes
    length: int  # of the sums

    @property
    def share(self) -> tuple[float, str]:
        return share(self.computed, self.problem, self.bound)


def lookup_scan(d: int, device: torch.device) -> Sums:
    """Scores of the scan itself, shapes and all: every lane of a tile holds one code, over and over."""
    launcher = _launcher("nearest_code")
    problem, codes = _packed_codes(launcher, d, device)
    blocks = -(-len(problem.rows) // codes.config.block_n)
    packed = torch.zeros(1, blocks * codes.config.block_n, codes.packing.columns, dtype=torch.float16, device=device)
    packed[0, : len(problem.rows)] = problem.rows.to(device)
    x = torch.empty(len(problem.rows), 1, d, device=device)
    nothing = torch.empty(0, device=device)
    found = launcher.scan(launcher._Rows(x, nothing, nothing, packed), codes)
    # a part of a split codebook holds the same codes: the worst of them counts
    lanes = found.best[0].view(len(problem.rows), -1, launcher.LANES).double()
    return Sums(problem, lanes.amin(1), _accumulation(codes.packing), codes.packing.columns)


def lookup_listed(d: int, device: torch.device) -> Sums:
    """Scores as the scan of listed vectors forms them, 16 rows at a time: other matrix instructions."""
    from bench.gpu.kernels import lookup_scores

    launcher = _launcher("nearest_code")
    problem, codes = _packed_codes(launcher, d, device)
    packing, rows, listed = codes.packing, codes.config.decide, codes.config.listed_codes
    blocks = -(-len(problem.rows) // rows)
    packed = torch.zeros(blocks * rows, packing.columns, dtype=torch.float16, device=device)
    packed[: len(problem.rows)] = problem.rows.to(device)
    scores = torch.empty(blocks * rows, listed, device=device)
    lookup_scores[(blocks,)](
        packed, codes.packed, scores, packing.width, packing.chunks, packing.tail, rows, listed, **launcher.PLAIN
    )
    computed = scores[: len(problem.rows), : len(problem.codes)]
    return Sums(problem, computed, _accumulation(packing), packing.columns)


def entropy_scores(d: int, device: torch.device) -> Sums:
    """Scores of the first pass of the entropy, a group per code: its least t is the one there is."""
    launcher = _launcher("soft_assignment_entropy")
    op = importlib.import_module("vqkernels.ops.soft_assignment_entropy.op")
    passes = importlib.import_module("vqkernels.ops.soft_assignment_entropy.triton_passes")
    problem = adversary(d, torch.float32)
    (n, _), k = problem.rows.shape, len(problem.codes)
    x = problem.rows.to(device)[:, None].expand(n, k, d)
    weight = torch.full((n, k), 1 / n, dtype=torch.float64, device=device)
    temperature = torch.ones((), dtype=torch.float64, device=device)
    codebook = problem.codes.to(device)[:, None]
    sides = launcher.prepare(op.Problem(x, codebook, weight, temperature, "dot", float("-inf")))
    sides = sides._replace(wide=torch.zeros_like(sides.wide))  # in float32, whatever the error does to logits
    least, log_sum, entropy = (torch.empty_like(sides.weight) for _ in range(3))
    launcher._launch(passes.normalize, sides, True, sides.slope, sides.wide, least, log_sum, entropy)
    return Sums(problem, -least.T, launcher.score_error(d), d)


def _launcher(op: str) -> Any:
    launcher = importlib.import_module(f"vqkernels.ops.{op}.triton")
    if reasons := launcher.unsupported_reasons():
        raise Unavailable(f"Triton kernels cannot run here: {'; '.join(reasons)}")
    return launcher


def _packed_codes(launcher: Any, d: int, device: torch.device) -> tuple[Adversary, Any]:
    """An adversary as wide as packed vectors of D entries, its codes dealt to the lanes of a packed codebook."""
    codes = launcher.prepare_codes(torch.zeros(1, 1, d, device=device), "l2")
    problem = adversary(codes.packing.columns, torch.float16)
    assert len(problem.codes) == launcher.LANES
    rounds = codes.packed.shape[1] // launcher.LANES
    return problem, codes._replace(packed=problem.codes.to(device).repeat(rounds, 1)[None])


def _accumulation(packing: Any) -> float:
    """What the lookup's bound leaves to the addition: see ``score_error`` of its launcher."""
    error: float = _launcher("nearest_code").accumulation_error(packing)
    return error


KERNELS: dict[str, tuple[Callable[[int, torch.device], Sums], tuple[int, ...]]] = {
    "lookup scan, halves": (lookup_scan, LOOKUP_DIMS),
    "lookup of listed vectors, halves": (lookup_listed, LOOKUP_DIMS),
    "entropy scores, three TF32 products": (entropy_scores, ENTROPY_DIMS),
}


def addition(context: Context) -> None:
    """The greatest error of every kernel that adds on tensor cores, as a share of what its proof allows."""
    device = context.device.place(torch.empty(0)).device
    broken = []
    for name, (kernel, dims) in KERNELS.items():
        for d in dims[:1] if context.smoke else dims:
            sums = kernel(d, device)
            share, row = sums.share
            context.record(f"{name} D={d}", {"length": sums.length, "share of the bound": share, "row": row})
            broken += [f"{name} D={d}: {share:.2f} of the bound"] if not share < 1 else []
    if broken:
        raise RuntimeError("; ".join(broken))
