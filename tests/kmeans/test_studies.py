"""The studies behind the README of k-means, on a few rows. Oracles: k-means itself, and what a share can be."""

from __future__ import annotations

import re

import vqkernels
from bench.kmeans import studies
from bench.kmeans.cases import photos


def shares(lines: list[str]) -> list[float]:
    return [float(share) for line in lines for share in re.findall(r"(\d+) %", line)]


def test_bounds_are_shares_of_the_iteration_they_name() -> None:
    lines = list(studies.bounds(photos, 600, 20, 8, iteration=3))
    x, start, _ = photos({"N": 600, "K": 20, "D": 8, "I": 3}, 0)
    before, after = (vqkernels.kmeans(x, 20, init=start, max_iter=i, tol=0.0).centroids for i in (2, 3))
    moves = float((before != after).any(dim=1).double().mean())
    assert shares(lines[:1]) == [round(100 * moves)]
    assert len(shares(lines)) == 5
    assert all(0 <= share <= 100 for share in shares(lines))


def test_seeding_is_told_for_every_way_to_start() -> None:
    lines = list(studies.seeding(600, 20, 4, iterations=2))
    x, _, _ = studies.mixture({"N": 600, "K": 20, "D": 4, "I": 2}, 0)
    inertia = [vqkernels.kmeans(x, 20, init=init, max_iter=2, tol=0.0).inertia for init in studies.INITS]
    assert [line.split(": ")[1] for line in lines[-3:]] == [
        f"{i / inertia[2]:.3f} of that from random" for i in inertia
    ]


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    (line,) = studies.memory(200_000, 1000, 8)
    told, megabytes = re.fullmatch(r"(.+): ([\d.]+) MB", line).groups()
    assert told == "a pass over 200000 x 8 in a memmap, K = 1000"
    # one chunk of rows is 6.4 MB
    assert float(megabytes) > 6


def test_a_balanced_fit_tells_its_sizes() -> None:
    seconds, bounded, free = studies.balanced(600, 20, 4, iterations=2)
    x, _, _ = photos({"N": 600, "K": 20, "D": 4, "I": 2}, 0)
    assert re.search(r": 2 iterations in [\d.e-]+ s, [\d.e-]+ s of processors$", seconds)
    for line, share in ((bounded, 1.0), (free, None)):
        result = vqkernels.kmeans(x, 20, max_iter=2, max_share=share)
        sizes = f"sizes {int(result.count.min())} to {int(result.count.max())}"
        assert line.endswith(f"{sizes}, inertia {result.inertia:.6g}")
