"""The definition of ``soft_assignment_entropy``: float64, distances from differences, rows in chunks.

The backward is written out, because an operator's implementation runs below autograd; README.md derives it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vqkernels.ops.soft_assignment_entropy.op import Assignment, Gradients, Problem, Upstream, gradient_dtype

_PAIRS_PER_CHUNK = 1 << 20


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(problem: Problem, remember: bool = False) -> Assignment:
    weight, temperature = problem.weight, problem.temperature
    least, log_sum, entropy = (torch.zeros_like(weight) for _ in range(3))
    assigned = torch.zeros(problem.codebook.shape[:2], dtype=torch.float64, device=weight.device)
    for group, rows, usable, vectors, codes in _chunks(problem):
        distance = _distance(vectors, codes, problem.metric)
        nearest = distance.amin(1)
        logits = (nearest[:, None] - distance) / temperature
        least[rows, group], log_sum[rows, group] = nearest, logits.logsumexp(1)
        log_p = logits - log_sum[rows, group, None]
        p = log_p.exp()
        entropy[rows, group] = -(p * log_p.clamp(min=problem.floor)).sum(1)
        assigned[group, usable] += weight[rows, group] @ p
    return Assignment(least, log_sum, entropy, assigned)


def run_backward(problem: Problem, upstream: Upstream) -> Gradients:
    x, codebook, weight, temperature, metric, floor = problem
    grad_x = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    grad_codebook = torch.zeros(codebook.shape, dtype=torch.float64, device=x.device)
    grad_temperature = torch.zeros_like(temperature)
    for group, rows, usable, vectors, codes in _chunks(problem):
        distance = _distance(vectors, codes, metric)
        least, log_sum = upstream.least[rows, group, None], upstream.log_sum[rows, group, None]
        log_p = (least - distance) / temperature - log_sum
        p = log_p.exp()
        slope = -log_p.clamp(min=floor) - (log_p > floor).double()
        gain = upstream.grad_entropy[rows, group, None] * slope
        gain += weight[rows, group, None] * upstream.grad_assigned[group, usable]
        grad_logit = p * (gain - (p * gain).sum(1, keepdim=True))
        grad_temperature -= (grad_logit * log_p).sum() / temperature
        dx, dc = _pull(-grad_logit / temperature, distance, vectors, codes, metric)
        if metric == "cosine":
            dx = _through_unit(dx, vectors, x[rows, group].double())
            dc = _through_unit(dc, codes, codebook[group, usable].double())
        grad_x[rows, group] = dx
        grad_codebook[group, usable] += dc
    found = (grad_x.to(gradient_dtype(x)), grad_codebook.to(gradient_dtype(codebook)), grad_temperature)
    return Gradients(*(gradient if need else None for gradient, need in zip(found, upstream.needed, strict=True)))


def _chunks(
    problem: Problem,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Group, rows that count, codes that are finite, and both in float64 (at unit length for the cosine)."""
    x, weight = problem.x, problem.weight
    for group, given in enumerate(problem.codebook.double()):
        usable = given.isfinite().all(1).nonzero()[:, 0]
        codes = given[usable]
        if not usable.numel():
            continue
        for rows in weight[:, group].nonzero()[:, 0].split(max(1, _PAIRS_PER_CHUNK // len(codes))):
            vectors = x[rows, group].double()
            if problem.metric == "cosine":
                yield group, rows, usable, _unit(vectors), _unit(codes)
            else:
                yield group, rows, usable, vectors, codes


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, vectors / norm, 0.0)


def _distance(vectors: torch.Tensor, codes: torch.Tensor, metric: str) -> torch.Tensor:  # [n, D], [k, D] -> [n, k]
    if metric in ("cosine", "dot"):
        return -(vectors @ codes.T)
    total = torch.zeros(len(vectors), len(codes), dtype=torch.float64, device=vectors.device)
    for d in range(vectors.shape[1]):
        total += (vectors[:, d, None] - codes[None, :, d]).square_()
    return total if metric == "l2" else total.sqrt_()


def _pull(
    grad_distance: torch.Tensor,  # [n, k]
    distance: torch.Tensor,  # [n, k]
    vectors: torch.Tensor,  # [n, D]
    codes: torch.Tensor,  # [k, D]
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of vectors and codes from those of their distances."""
    if metric in ("cosine", "dot"):
        return -(grad_distance @ codes), -(grad_distance.T @ vectors)
    h = 2 * grad_distance if metric == "l2" else torch.where(distance > 0, grad_distance / distance, 0.0)
    # from the mean code, lest two large sums cancel
    centre = codes.mean(0)
    vectors, codes = vectors - centre, codes - centre
    return vectors * h.sum(1)[:, None] - h @ codes, codes * h.sum(0)[:, None] - h.T @ vectors


def _through_unit(grad: torch.Tensor, unit: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Gradient of ``given`` from that of ``unit = given / |given|``."""
    norm = given.norm(dim=1, keepdim=True)
    tangent = grad - unit * (unit * grad).sum(1, keepdim=True)
    return torch.where(norm > 0, tangent / norm, 0.0)
