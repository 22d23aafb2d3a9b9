"""Soft assignment entropies with the N x K matrix, in float64 with autograd, and how far off float32 may be.

A backend whose logits are off by at most e (and whose sums of m terms by m u) is off to first order by

    dg = p (2e |u - U| + 2e sum p |u - U| + 2 (a + 2 w) e)        g = p (u - U), u the gain, U its mean, see README.md

in the gradient of a logit: p errs by 2e p, log p by 2e, log p-bar by 2e. What depends on the logits follows by the
chain rule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

U32 = 2.0**-24
SECTION_TERMS = 4096  # the longest float32 sum of the C++ kernels
COUNTS_AS_ZERO = math.exp(-63)  # a probability below e^-64 may come out as 0


class Truth(NamedTuple):
    """Values, gradients of ``alpha sample - beta usage``, and a budget for each, in float64."""

    sample: torch.Tensor  # []
    usage: torch.Tensor  # []
    mean_assignment: torch.Tensor  # [K]
    dx: torch.Tensor  # [N, D]
    dcodebook: torch.Tensor  # [K, D]
    dtemperature: torch.Tensor  # []


def distances(x: torch.Tensor, codebook: torch.Tensor, metric: str) -> torch.Tensor:  # [N, D], [K, D] -> [N, K]
    if metric == "dot":
        return -(x @ codebook.T)
    if metric == "cosine":
        x, codebook = (t / t.norm(dim=1, keepdim=True) for t in (x, codebook))
        return 1 - x @ codebook.T
    squared = (x[:, None] - codebook[None]).square().sum(2)
    if metric == "l2":
        return squared
    # the root has no gradient at 0; 0 by convention
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def entropy_terms(p: torch.Tensor, log_p: torch.Tensor, smoothing: str, eps: float) -> torch.Tensor:
    if smoothing == "clamp":
        return -p * p.clamp(min=eps).log()
    return -p * torch.where(p > 0, log_p, 0.0)


def materialised(
    x: torch.Tensor,  # [N, D]
    codebook: torch.Tensor,  # [K, D]
    weight: torch.Tensor,  # [N]
    temperature: torch.Tensor,  # []
    metric: str,
    smoothing: str = "none",
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """sample, usage, mean assignment, and log p."""
    log_p = (-distances(x, codebook, metric) / temperature).log_softmax(1)
    p = log_p.exp()
    share = weight / weight.sum()
    mean = share @ p
    sample = share @ entropy_terms(p, log_p, smoothing, eps).sum(1)
    log_mean = (mean + eps).log() if smoothing == "add" else mean.clamp(min=1e-300).log()
    usage = entropy_terms(mean, log_mean, smoothing, eps).sum()
    return sample, usage, mean, log_p


def truth_and_budget(
    x: torch.Tensor,
    codebook: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    metric: str,
    *,
    alpha: float,
    beta: float,
    smoothing: str = "none",
    eps: float = 1e-5,
    logit_error: float,
    roundoff: float = U32,
) -> tuple[Truth, Truth]:
    """The materialised result, and what a backend with this error of its logits may be off by."""
    x, codebook = (t.detach().double().requires_grad_() for t in (x, codebook))
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    weight = weight.double()
    share = (weight / weight.sum())[:, None]
    sample, usage, mean, log_p = materialised(x, codebook, weight, tau, metric, smoothing, eps)
    gradients = torch.autograd.grad(alpha * sample - beta * usage, (x, codebook, tau))
    truth = Truth(*(t.detach() for t in (sample, usage, mean, *gradients)))

    x, codebook, log_p, mean = (t.detach() for t in (x, codebook, log_p, mean))
    p, e = log_p.exp(), logit_error
    floor = torch.tensor(eps).double().log()
    clamped = smoothing == "clamp"
    a = alpha * share
    slope = torch.where(log_p > floor, log_p + 1, floor) if clamped else log_p
    shift = {"none": mean.clamp(min=1e-300).log(), "add": (mean + eps).log() + mean / (mean + eps)}
    v = shift.get(smoothing, torch.where(mean > eps, mean.clamp(min=eps).log() + 1, floor))
    gain = -a * slope + beta * share * v
    centred = (gain - (p * gain).sum(1, keepdim=True)).abs()
    # at the clamp both slopes jump by 1
    jump = (a + beta * share) * (clamped & (((log_p - floor).abs() < 4 * e) | ((mean.log() - floor).abs() < 4 * e)))
    dgain = 2 * e * (alpha + 2 * beta) * share + jump
    dg = p * (2 * e * centred + (p * (2 * e * centred + dgain)).sum(1, keepdim=True) + dgain)
    lost = p.clamp(max=COUNTS_AS_ZERO)
    # what the subtraction u - U itself rounds
    dg += 8 * roundoff * p * (gain.abs() + (p * gain.abs()).sum(1, keepdim=True) + beta * share)
    dg += (SECTION_TERMS * roundoff * p + lost) * centred
    # what is left of tiny ones is a multiple of the least float32, after each of some products
    dg += 4 * 2.0**-149 if roundoff == U32 else 0.0
    # how a logit moves with its vectors, at most
    if metric == "l2":
        centre = codebook.mean(0)
        reach = 2 * ((x - centre).norm(dim=1).max() + (codebook - centre).norm(dim=1).max())
        reach_x = reach_c = reach
    elif metric == "euclidean":
        # (x - c) / r from sums of x / r and of c / r: what they lose is relative to their size
        reach_x = reach_c = torch.tensor(1.0).double()
    elif metric == "cosine":
        reach_x, reach_c = (2 / t.norm(dim=1).min() for t in (x, codebook))
    else:
        reach_x, reach_c = (t.norm(dim=1).max() for t in (codebook, x))
    weighted = share * p
    dmean = 2 * e * mean + (share * (p * SECTION_TERMS * roundoff + lost)).sum(0)
    relative = log_p - (p * log_p).sum(1, keepdim=True)
    # the truth multiplies with logits that are not relative to anything
    raw = distances(x, codebook, metric) / temperature
    truth_error = 2.0**-50 * (p * (gain.abs() + share) * raw.abs()).sum() / temperature
    budget = Truth(
        (weighted * (2 * e * (relative.abs() + 1) + jump) + share * lost * relative.abs()).sum()
        + 8 * roundoff * (truth.sample + 1),
        (dmean * (v.abs() + 2)).sum() + 8 * roundoff * (truth.usage + 1),
        dmean,
        (dg.sum(1) * reach_x / temperature)[:, None] + 8 * roundoff * truth.dx.abs(),
        (dg.sum(0) * reach_c / temperature)[:, None] + 8 * roundoff * truth.dcodebook.abs(),
        (dg * relative.abs() + 2 * e * p * centred).sum() / temperature
        + 8 * roundoff * truth.dtemperature.abs()
        + truth_error,
    )
    return truth, budget


def float32_logit_error(
    x: torch.Tensor, codebook: torch.Tensor, temperature: float, metric: str, terms: int | None = None
) -> float:
    """What the README promises for float32 inputs: the rounding of its products, or 2^-9 where that would be more.

    ``terms``: of 2^-24 in a score, if not those of a float32 sum.
    """
    centre = codebook.double().mean(0) if metric in ("l2", "euclidean") else 0.0
    longest = [(t.double() - centre).norm(dim=1).max().item() for t in (x, codebook)]
    size = {"dot": longest[0] * longest[1], "cosine": 1.0}.get(metric, sum(longest) ** 2)
    error = (x.shape[1] + 8 if terms is None else terms) * U32 * size
    if metric == "euclidean":
        error = error**0.5
    # and the rounding of log p itself, up to 64 where p still counts
    return min(error / temperature, 2.0**-9) + 64 * U32


def assert_meets(actual: Truth, truth: Truth, budget: Truth) -> None:
    for name, got, want, allowed in zip(Truth._fields, actual, truth, budget, strict=True):
        error = (got.detach().double() - want).abs()
        worst = (error / allowed.clamp(min=1e-300)).max().item() if error.numel() else 0.0
        assert bool((error <= allowed).all()), f"{name}: off by {worst:.2f} of the budget"
