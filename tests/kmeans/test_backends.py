"""K-means on every backend. Oracle: the bits of the reference; on a GPU at full size, the definition on a sample."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from vqkernels import code_stats, kmeans, nearest_code
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, backend_device

OPS = ("nearest_code", "code_stats")  # what k-means runs on


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("init", ["given", "k-means++"])
def test_same_bits_on_every_backend(backend: str, init: str, metric: str) -> None:
    centers = 3 * torch.randn(6, 3)
    x = centers[torch.randint(6, (60,))] + 0.3 * torch.randn(60, 3)
    weight = torch.rand(60) + 0.5
    results = []
    for name in ("reference", backend):
        device = backend_device(name)
        start = torch.cat([x[:6], torch.full((1, 3), 1e3)]).to(device) if init == "given" else init  # one is empty
        options = {"metric": metric, "max_iter": 4, "tol": 0.0, "weight": weight.to(device), "backend": name}
        results.append(kmeans(x.to(device), 7, init=start, **options))
    want, got = results
    assert want.iterations >= (2 if init == "given" else 1)
    assert_bitwise_equal(got.centroids.cpu(), want.centroids)
    assert_bitwise_equal(got.count.cpu(), want.count)
    assert got.history == want.history


@pytest.mark.gpu
def test_a_hundred_thousand_centers_on_a_million_vectors() -> None:
    n, k, d = 1_000_000, 100_000, 256
    if torch.cuda.get_device_properties(0).total_memory < 16 * n * d:
        pytest.skip("the machine has less than 4 GB of device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    centers = torch.randn(k, d, device="cuda", generator=generator)
    # five rows and more per center: every cluster of the first pass has rows
    x = centers[torch.arange(n, device="cuda") % k] + 0.5 * torch.randn(n, d, device="cuda", generator=generator)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    result = kmeans(x, k, init=centers, max_iter=2, tol=0.0)
    assert torch.cuda.max_memory_allocated() - held < 4 * n * d + 64 * k * d  # far from the 400 GB of all distances
    assert float(result.count.sum()) == n
    assert all(after <= before * (1 + 2.0**-20) for before, after in pairwise(result.history))
    indices, distance = nearest_code(x, result.centroids)
    for part in (slice(0, 64), slice(n - 64, n)):
        assert_exact_lookup(x[part].cpu(), result.centroids.cpu(), indices[part].cpu(), distance[part].cpu())
    assert_bitwise_equal(code_stats(x, indices, k).count, result.count)
    assert abs(result.inertia - float(distance.double().sum())) <= n * 2.0**-53 * result.inertia
