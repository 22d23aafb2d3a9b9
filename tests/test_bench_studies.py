"""The study of scans in fewer bits, on a few rows. Oracle: pairs looked at one by one."""

from __future__ import annotations

import torch

from bench.nearest_code import studies
from vqkernels.testing import lookup_problem


def brute_force(x: torch.Tensor, codebook: torch.Tensor, rounded: studies.Rounding) -> list[tuple[int, bool, int]]:
    """Sections listed by their codes, bounds one at a time."""
    block = studies.LANES * studies.CODES
    sections = [
        range(first + lane, min(len(codebook), first + block), studies.LANES)
        for first in range(0, len(codebook), block)
        for lane in range(studies.LANES)
    ]
    sections = [section for section in sections if section]
    found = []
    for row in x:
        close = rounded(row[None], False)[0]

        def bound(k: int, row: torch.Tensor = row, close: torch.Tensor = close) -> float:
            code, near = codebook[k], rounded(codebook[k : k + 1], True)[0]
            error = (row - close).norm() * code.norm() + close.norm() * (code - near).norm()
            return float(code.square().sum() / 2 - close @ near - error)

        lowest = [min(bound(k) for k in section) for section in sections]
        first = sections[lowest.index(min(lowest))]
        reached = min(float(codebook[k].square().sum() / 2 - row @ codebook[k]) for k in first)
        lanes = [section[0] % studies.LANES for section, low in zip(sections, lowest, strict=True) if low <= reached]
        nearest = min(float(code.square().sum() / 2 - row @ code) for code in codebook)
        within = sum(bound(k) <= nearest for k in range(len(codebook)))
        found.append((len(lanes), len(lanes) > len(set(lanes)), within))
    return found


def test_what_is_left_is_what_pairs_say() -> None:
    x, codebook = (t.double() for t in lookup_problem("gaussian", 12, 150, 33))
    shares = []
    for rounding in (*studies.ROUNDINGS.values(), lambda rows, codes: rows.round()):
        left = studies.left(x, codebook, rounding)
        assert list(zip(*(each.tolist() for each in left), strict=True)) == brute_force(x, codebook, rounding)
        shares.append(left.open.double().mean().item())
    assert shares[-2] == 0  # 16 bits tell these apart
    assert shares[-1] == 1  # whole numbers do not
