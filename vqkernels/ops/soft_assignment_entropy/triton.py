"""Launcher of the Triton passes: centred copies, the choice of precision, the chain rule, all without waiting for
the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)
from vqkernels.ops.soft_assignment_entropy.op import Assignment, Gradients, Problem, Upstream, gradient_dtype

LOGIT_TOLERANCE = 2.0**-9
LARGEST_LENGTH = 1e10
ABSENT = 1e30  # of triton_passes


class Config(NamedTuple):
    """Shapes of programs."""

    owners: int
    stream: int
    num_warps: int
    num_stages: int


# from cross-compilation: one warpgroup, since a second one would repeat its work; nothing spills up to D = 32,
# at D = 256 `pull` does, 216 bytes on sm_80 (472 in float64). Not yet measured on hardware
CONFIGS = {"interpreter": Config(128, 256, 1, 1), "other": Config(64, 32, 4, 2)}


def score_error(d: int) -> float:
    """Error of a float32 score over (X + C)^2 / 2, or X C, with three TF32 products for one; proven in README.md."""
    return (3 * d + 16) * 2.0**-24


def unsupported_reasons(*args: object) -> list[str]:
    reasons = triton_unsupported_reasons(*args)
    if any(isinstance(arg, torch.Tensor) and arg.dtype == torch.float64 for arg in args[:2]):
        reasons.append("float64 vectors or codes ask for float64 results")
    return reasons


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


class _Side(NamedTuple):
    """Vectors or codes of all groups, prepared."""

    copies: torch.Tensor  # [G, count, D] float32: centred, or at unit length; 0 for what takes no part
    bias: torch.Tensor  # [G, count] float32: half the squared length, or 0; ABSENT for what takes no part
    given: torch.Tensor  # as given, of any strides
    strides: tuple[int, int, int]  # of `given`: vector, group, entry
    factor: torch.Tensor  # [G, count] float64: 1, or 1 / length (cosine)
    length: torch.Tensor  # [G] float64, of the longest copy

    def arguments(self) -> tuple[Any, ...]:
        return self.copies, self.bias, self.given, self.factor, *self.strides, self.copies.shape[1]


class _Prepared(NamedTuple):
    """The problem as the passes see it."""

    x: _Side
    codes: _Side
    weight: torch.Tensor  # [G, N] float64
    slope: torch.Tensor  # [] float64
    wide: torch.Tensor  # [G] int32: whether t is float64
    metric: str
    floor: float
    config: Config

    @property
    def centred(self) -> bool:
        return self.metric in ("l2", "euclidean")

    @property
    def distance_of_t(self) -> float:
        return 2.0 if self.metric == "l2" else 1.0


def run(problem: Problem, remember: bool = False) -> Assignment:
    from vqkernels.ops.soft_assignment_entropy import triton_passes as kernels

    weight, codebook = problem.weight, problem.codebook
    if weight.numel() == 0:
        nothing = torch.zeros_like(weight)
        return Assignment(nothing, nothing.clone(), nothing.clone(), weight.new_zeros(codebook.shape[:2]))
    with launch_device(problem.x):
        sides = prepare(problem)
        least, log_sum, entropy = (torch.empty_like(sides.weight) for _ in range(3))
        _launch(kernels.normalize, sides, True, sides.slope, sides.wide, least, log_sum, entropy)
        rows = _rows(sides, least, log_sum, entropy)
        if problem.floor > -math.inf:
            entropy = _sum(sides, rows, "floored entropy")
        assigned = _sum(sides, rows, "weight")
        # a group without a finite code gives nothing
        counts = (sides.weight > 0) & (sides.codes.bias < ABSENT).any(1, keepdim=True)
        least, log_sum, entropy = (torch.where(counts, t, 0.0).T.contiguous() for t in (least, log_sum, entropy))
        assigned = torch.where(sides.codes.bias < ABSENT, assigned, 0.0)
        return Assignment(least * sides.distance_of_t, log_sum, entropy, assigned)


def run_backward(problem: Problem, upstream: Upstream) -> Gradients:
    x_needed, codebook_needed, temperature_needed = upstream.needed
    dx, dc = (
        torch.zeros(t.shape, dtype=gradient_dtype(t), device=t.device) if need else None
        for t, need in ((problem.x, x_needed), (problem.codebook, codebook_needed))
    )
    dt = torch.zeros_like(problem.temperature) if temperature_needed else None
    if problem.weight.numel() == 0:
        return Gradients(dx, dc, dt)
    with launch_device(problem.x):
        sides = prepare(problem)
        rows = _rows(sides, upstream.least.T / sides.distance_of_t, upstream.log_sum.T, upstream.entropy.T)
        rows = rows._replace(
            grad_entropy=_single(upstream.grad_entropy.T), grad_assigned=_single(upstream.grad_assigned)
        )
        mean = _single(_sum(sides, rows, "gain"))
        if x_needed or temperature_needed:
            pulled, grad_log = _pull(sides, rows, mean, True)
            if dx is not None:
                dx.copy_(_chain(sides, sides.x, pulled).transpose(0, 1))
            if dt is not None:
                dt.sub_(grad_log.sum() / problem.temperature)
        if dc is not None:
            dc.copy_(_chain(sides, sides.codes, _pull(sides, rows, mean, False)[0]))
        return Gradients(dx, dc, dt)


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().contiguous()


def prepare(problem: Problem) -> _Prepared:
    """Copies and numbers of both sides, and the precision of each group."""
    x, codebook, weight, temperature, metric, floor = problem
    d = x.shape[2]
    present = codebook.isfinite().all(2)
    centre = None
    if metric in ("l2", "euclidean"):
        codes = torch.where(present[..., None], codebook.double(), 0.0)
        centre = codes.sum(1, keepdim=True) / present.sum(1)[:, None, None].clamp(min=1)
    weights = weight.T.contiguous()
    vectors = _side(x.transpose(0, 1), weights > 0, centre, metric)
    codes_side = _side(codebook, present, centre, metric)
    slope = (2.0 if metric == "l2" else 1.0) / temperature
    size = vectors.length * codes_side.length
    if centre is not None:
        size = (vectors.length + codes_side.length).square() / 2
    error = score_error(d) * size + (d + 8) * 2.0**-149
    if metric == "euclidean":
        error = (2 * error).sqrt()
    longest = torch.maximum(vectors.length, codes_side.length)
    single = (longest < LARGEST_LENGTH) & (slope > 1e-10) & (slope < 1e10) & (slope * error <= LOGIT_TOLERANCE)
    config = CONFIGS.get(launch_target(x), CONFIGS["other"])
    return _Prepared(vectors, codes_side, weights, slope, (~single).int(), metric, floor, config)


def _side(given: torch.Tensor, present: torch.Tensor, centre: torch.Tensor | None, metric: str) -> _Side:
    """Prepare ``given`` [G, count, D]; ``present`` [G, count] takes part."""
    copies = torch.where(present[..., None], given, 0.0).double()
    factor = torch.ones_like(copies[..., 0])
    if metric == "cosine":
        norm = copies.norm(dim=2)
        factor = torch.where(norm > 0, 1 / norm, 0.0)
        copies = copies * factor[..., None]
    elif centre is not None:
        copies = torch.where(present[..., None], copies - centre, 0.0)
    square = copies.square().sum(2)
    # one that is too long for float32 must not look absent; its group is wide
    half = (square / 2 if centre is not None else 0 * square).clamp(max=ABSENT / 16)
    bias = torch.where(present, half, ABSENT).float()
    stride = (given.stride(1), given.stride(0), given.stride(2))
    return _Side(copies.float().contiguous(), bias, given, stride, factor, square.amax(1).sqrt())


class _Rows(NamedTuple):
    """Numbers of each vector, and the gradient of the assignments."""

    origin: torch.Tensor  # [G, N] float64
    rest: torch.Tensor  # [G, N] float64
    weight: torch.Tensor  # [G, N] float32
    grad_entropy: torch.Tensor  # [G, N] float32
    grad_assigned: torch.Tensor  # [G, K] float32


def _rows(sides: _Prepared, least: torch.Tensor, log_sum: torch.Tensor, entropy: torch.Tensor) -> _Rows:
    """log p = slope (origin - t) + rest with the origin near the mean of t, as in csrc/cpu/soft_entropy_pass.h."""
    mean = least + (entropy - log_sum) / sides.slope
    origin = torch.where(sides.wide[:, None] > 0, mean, mean.float().double())
    rest = sides.slope * (least - origin) - log_sum
    counts = sides.weight > 0
    origin, rest = (torch.where(counts, t, 0.0).contiguous() for t in (origin, rest))
    weight = _single(sides.weight)
    return _Rows(origin, rest, weight, weight, weight)


def _launch(kernel: Any, sides: _Prepared, x_owns: bool, *args: Any, slices: int = 1, **constants: Any) -> None:
    """One pass, in both precisions of t."""
    own, other = (sides.x, sides.codes) if x_owns else (sides.codes, sides.x)
    g, count, d = own.copies.shape
    config = sides.config
    for wide in (0, 1):
        kernel[(-(-count // config.owners), g, slices)](
            *own.arguments(), *other.arguments(), *args,
            D=d, METRIC=sides.metric, WIDE=wide, COLUMNS=columns(d), OWNERS=config.owners, STREAM=config.stream,
            **constants, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def columns(d: int) -> int:
    """Dimensions of a score that are multiplied at a time."""
    return min(32, max(16, 1 << (d - 1).bit_length()))


def slice_width(d: int) -> int:
    """Dimensions of a gradient that a program sums."""
    return min(128, max(16, 1 << (d - 1).bit_length()))


def _shared(sides: _Prepared, rows: _Rows) -> tuple[Any, ...]:
    floor = sides.floor if sides.floor > -math.inf else 0.0
    return sides.slope, sides.wide, *rows, floor


def _sum(sides: _Prepared, rows: _Rows, term: str) -> torch.Tensor:
    from vqkernels.ops.soft_assignment_entropy import triton_passes as kernels

    x_owns = term != "weight"
    sums = torch.empty((sides.x if x_owns else sides.codes).bias.shape, dtype=torch.float64, device=rows.rest.device)
    floored = sides.floor > -math.inf
    _launch(kernels.sum_terms, sides, x_owns, *_shared(sides, rows), sums, TERM=term, FLOORED=floored)
    return sums


def _pull(
    sides: _Prepared, rows: _Rows, mean: torch.Tensor, x_owns: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Sums of h y and of h of each owner, and its sum of g log p."""
    from vqkernels.ops.soft_assignment_entropy import triton_passes as kernels

    copies = (sides.x if x_owns else sides.codes).copies
    moved = torch.empty_like(copies)
    total, grad_log = (copies.new_empty(copies.shape[:2], dtype=torch.float64) for _ in range(2))
    # nearer than what rounding can tell from 0
    share = torch.where(sides.wide > 0, 2.0**-24, 2.0**-12)
    least_t = _single((sides.x.length + sides.codes.length) * share)
    width = slice_width(copies.shape[2])
    _launch(
        kernels.pull, sides, x_owns, *_shared(sides, rows), mean, least_t, moved, total, grad_log,
        slices=-(-copies.shape[2] // width), X_OWNS=x_owns, FLOORED=sides.floor > -math.inf, SLICE=width,
    )  # fmt: skip
    return (moved, total), grad_log


def _chain(sides: _Prepared, side: _Side, pulled: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Gradient of the owners ``[G, owners, D]``, through dt/d(owner)."""
    moved, total = pulled
    copies = side.copies.double()
    gradient = sides.slope * moved.double()
    if sides.metric == "cosine":
        gradient = (gradient - copies * (copies * gradient).sum(2, keepdim=True)) * side.factor[..., None]
    elif sides.centred:
        gradient = gradient - sides.slope * copies * total[..., None]
    return torch.where((side.bias < ABSENT)[..., None], gradient, 0.0)
