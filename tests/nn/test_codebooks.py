"""The kinds of codebook: how they start, move, come back to life and are fitted.

Oracles: the published update rules written out in float64; k-means called by hand; linear layers in plain torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nn_oracle import make
from torch.nn import functional as F

import vqkernels
from vqkernels import Ema, Frozen, Learned, OnlineClustering, VectorQuantizer
from vqkernels.testing import assert_bitwise_equal, assert_within_budget


@pytest.mark.parametrize(
    ("config", "bound"),
    [(Learned(), 1 / 64), (Learned(init_scale=0.5), 0.5), (Ema(), 1 / 64), (OnlineClustering(), 1 / 64)],
)
def test_codes_start_uniform(config: Any, bound: float) -> None:
    codes = VectorQuantizer(8, 64, codebook=config).codebook
    assert float(codes.abs().max()) <= bound
    # 512 draws: the chance that none comes within 5 % of the bound is 4e-12
    assert float(codes.abs().max()) > 0.95 * bound
    assert list(VectorQuantizer(8, 64, groups=4, codebook=config).codebook.shape) == [4, 64, 2]


def test_cosine_codes_start_on_the_unit_sphere() -> None:
    norms = VectorQuantizer(8, 64, metric="cosine").table.weight.detach().norm(dim=-1)
    assert float((norms - 1).abs().max()) <= 8 * 2.0**-24


def ema_in_float(
    state: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, indices: torch.Tensor, decay: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of van den Oord et al. 2017, appendix A.1, by one-hot, in the dtype of the state."""
    size, total = state
    onehot = F.one_hot(indices, len(size)).to(size.dtype)
    size = decay * size + (1 - decay) * onehot.sum(0)
    total = decay * total + (1 - decay) * onehot.T @ x.to(size.dtype)
    n = size.sum()
    return size, total, total / ((size + eps) / (n + len(size) * eps) * n)[:, None]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ema_is_the_running_mean_from_the_first_step_on(metric: str) -> None:
    torch.manual_seed(3)
    quantizer = VectorQuantizer(4, 16, codebook=Ema(decay=0.9, eps=1e-3), metric=metric)
    start = quantizer.codebook[0]
    states = {dtype: (torch.ones(16, dtype=dtype), start.to(dtype)) for dtype in (torch.float64, torch.float32)}
    for _ in range(3):
        x = torch.randn(50, 4)
        indices = quantizer(x).indices
        rows = F.normalize(x, dim=1) if metric == "cosine" else x
        books = {}
        for dtype, (size, total) in states.items():
            *states[dtype], book = ema_in_float((size, total), rows, indices, 0.9, 1e-3)
            books[dtype] = F.normalize(book, dim=1) if metric == "cosine" else book
        for actual, want, reference in (
            (quantizer.table.cluster_size[0], states[torch.float64][0], states[torch.float32][0]),
            (quantizer.table.embed_sum[0], states[torch.float64][1], states[torch.float32][1]),
            (quantizer.codebook[0], books[torch.float64], books[torch.float32]),
        ):
            assert_within_budget(actual, want, reference)


def test_ema_codes_have_no_gradient_and_are_no_parameters() -> None:
    quantizer = VectorQuantizer(4, 16, codebook=Ema())
    assert not list(quantizer.parameters())
    assert list(quantizer(torch.randn(3, 4)).losses) == ["commitment"]


def revival_run(seed: int, steps: int, metric: str = "l2") -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Codebooks after every step of training on one corner of space, and the batches."""
    torch.manual_seed(1)
    quantizer = VectorQuantizer(4, 8, groups=2, codebook=Ema(dead_after=3), metric=metric)
    # all but the first two codes of each group are far away
    far = torch.full((2, 8, 2), -50.0) if metric == "l2" else torch.full((2, 8, 2), -1.0)
    far[:, :2] = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    quantizer.table.assign_(F.normalize(far, dim=-1) if metric == "cosine" else far)
    torch.manual_seed(seed)
    books, batches = [], []
    for _ in range(steps):
        batches.append(torch.rand(60, 4) + 1)
        quantizer(batches[-1])
        books.append(quantizer.codebook.clone())
    return books, batches


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ema_revives_codes_unused_for_dead_after_steps(metric: str) -> None:
    books, batches = revival_run(0, 3, metric)
    inside = [(book > 0).all(dim=2) for book in books]
    assert [step.sum(1).tolist() for step in inside] == [[2, 2], [2, 2], [8, 8]]
    rows = batches[2].reshape(60, 2, 2)
    rows = F.normalize(rows, dim=-1) if metric == "cosine" else rows
    for group in range(2):
        revived = books[2][group, 2:]
        nearest = vqkernels.nearest_code(revived, rows[:, group])
        source = rows[nearest.indices, group]
        # jitter, and rounding to unit length
        assert bool(((revived - source).abs() <= 1.5e-3 * source.abs()).all())
        assert len(nearest.indices.unique()) == 6  # six codes, six vectors
        assert bool((revived != source).any(dim=1).all())


def test_revival_is_a_function_of_the_state() -> None:
    first, second = revival_run(0, 6), revival_run(0, 6)
    for a, b in zip(first[0], second[0], strict=True):
        assert_bitwise_equal(a, b)


def test_revived_codes_start_over_and_get_their_time() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 64, codebook=Ema(dead_after=2))
    x = torch.randn(8, 4)  # fewer vectors than dead codes
    used = [set(quantizer(x).indices.tolist()) for _ in range(2)]
    table = quantizer.table
    dead = [code for code in range(64) if code not in used[0] | used[1]]
    late = [code for code in dead if table.idle[0, code] > 0]
    assert len(dead) - 8 <= len(late) < len(dead)  # no vector is given away twice: the others wait for the next step
    assert bool((table.idle[0, late] == 2).all())
    dead = [code for code in dead if code not in late]
    assert bool((table.cluster_size[0, dead] == 1).all())
    assert_bitwise_equal(table.embed_sum[0, dead], table.weight[0, dead])
    assert bool((table.idle[0, dead] == 0).all())
    assert len(torch.unique(table.weight[0, dead], dim=0)) == len(dead)
    used_now = quantizer(x[:1]).indices.tolist()
    waiting = [code for code in dead if code not in used_now]
    assert waiting
    assert bool((table.idle[0, waiting] == 1).all())
    # not revived again one step later: the running count has decayed instead
    assert bool((table.cluster_size[0, waiting] == torch.tensor(1.0) * 0.99).all())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_frozen_codes_are_projected_features(shared: bool, groups: int) -> None:
    features = torch.randn(32, 12) if shared else torch.randn(groups, 32, 12)
    quantizer = VectorQuantizer(8, 32, groups=groups, codebook=Frozen(features=features))
    weight, bias = quantizer.table.projector.weight, quantizer.table.projector.bias
    d = 8 // groups

    def project(dtype: torch.dtype, *leaves: torch.Tensor) -> torch.Tensor:
        w, b = leaves or (weight.detach().to(dtype), bias.detach().to(dtype))
        source = features.to(dtype).expand(groups, 32, 12)
        parts = zip(source, w.split(d), b.split(d), strict=True)
        return torch.stack([F.linear(f, w_, b_) for f, w_, b_ in parts])

    assert_within_budget(quantizer.codebook, project(torch.float64), project(torch.float32))

    x = torch.randn(40, 8)
    out = quantizer(x)
    out.losses["codebook"].backward()

    def gradient(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [p.detach().to(dtype).requires_grad_() for p in (weight, bias)]
        index = out.indices.reshape(40, groups)
        codes = torch.stack([book[i] for book, i in zip(project(dtype, *leaves), index.unbind(1), strict=True)], 1)
        loss = (x.to(dtype).reshape(codes.shape) - codes).square().mean()
        return torch.autograd.grad(loss, leaves)

    for p, want, reference in zip((weight, bias), gradient(torch.float64), gradient(torch.float32), strict=True):
        assert_within_budget(p.grad, want, reference)
    assert not quantizer.table.features.requires_grad


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_hidden_layer_projects_features_and_is_trained(shared: bool, groups: int) -> None:
    features = torch.randn(32, 12) if shared else torch.randn(groups, 32, 12)
    config = Frozen(features=features, projector="mlp", hidden=20)
    quantizer = VectorQuantizer(8, 32, groups=groups, codebook=config)
    hidden, last = quantizer.table.hidden, quantizer.table.projector
    d = 8 // groups

    def project(dtype: torch.dtype) -> torch.Tensor:
        source = features.to(dtype).expand(groups, 32, 12)
        units = F.relu(F.linear(source, hidden.weight.to(dtype), hidden.bias.to(dtype)))  # [G, K, H]
        parts = zip(units, last.weight.to(dtype).split(d), last.bias.to(dtype).split(d), strict=True)
        return torch.stack([F.linear(f, w, b) for f, w, b in parts])

    assert_within_budget(quantizer.codebook, project(torch.float64), project(torch.float32))
    quantizer(torch.randn(40, 8)).losses["codebook"].backward()
    assert all(bool(p.grad.any()) for p in quantizer.table.parameters())


@pytest.mark.parametrize("projector", ["none", "linear", "mlp"])
def test_tuned_features_are_trained_by_the_codebook_loss(projector: str) -> None:
    features = torch.randn(32, 8)
    plain = VectorQuantizer(8, 32, codebook=Frozen(features=features, projector=projector))
    quantizer = VectorQuantizer(8, 32, codebook=Frozen(features=features, projector=projector, tuned=True))
    quantizer.load_state_dict(plain.state_dict())  # the same keys, tuned or not
    assert_bitwise_equal(quantizer.codebook, plain.codebook)
    x = torch.randn(40, 8)
    out = quantizer(x)
    out.losses["codebook"].backward()
    moved = quantizer.table.features.grad.abs().sum(1) > 0
    used = torch.zeros(32, dtype=torch.bool).index_fill(0, out.indices, True)
    assert torch.equal(moved, used)
    assert "codebook" in plain(x).losses or projector == "none"


def test_frozen_features_as_codes() -> None:
    features = torch.randn(32, 4)
    quantizer = VectorQuantizer(8, 32, groups=2, codebook=Frozen(features=features, projector=False))
    out = quantizer(torch.randn(5, 8))
    assert_bitwise_equal(quantizer.codebook, features.expand(2, 32, 4))
    assert list(out.losses) == ["commitment"]
    assert not list(quantizer.parameters())


def test_features_are_copied_into_the_state() -> None:
    features = torch.randn(32, 8)
    quantizer = VectorQuantizer(8, 32, codebook=Frozen(features=features, projector=False))
    features.zero_()
    assert bool(quantizer.state_dict()["table.features"].any())


def test_projector_starts_as_published() -> None:
    weight = VectorQuantizer(16, 4, codebook=Frozen(features=torch.randn(4, 4096))).table.projector.weight.detach()
    # 65536 draws: the standard deviation is known to 1.4 % at five sigma
    assert abs(float(weight.std()) * 16**0.5 - 1) < 0.014


@pytest.mark.parametrize("groups", [1, 2])
def test_matched_codes_have_the_mean_and_deviation_of_the_vectors(groups: int) -> None:
    config = Frozen(features=torch.randn(500, 12), projector_init="matched")
    quantizer = VectorQuantizer(8, 500, groups=groups, codebook=config)
    batches = [torch.randn(100, 8) * torch.arange(1, 9) + 5 for _ in range(3)]
    with pytest.raises(ValueError, match="fit_codebook"):
        quantizer(batches[0])
    quantizer.eval()(batches[0])
    quantizer.fit_codebook(batches)
    quantizer.train()(batches[0])
    rows = torch.cat(batches).reshape(300, groups, -1).double()
    codes = quantizer.codebook.double()
    # codes are float32 numbers computed from float32 weights by 12 products
    slack = 32 * 2.0**-24 * float(codes.abs().max())
    assert float((codes.mean(1) - rows.mean(0)).abs().max()) < slack
    assert float((codes.std(1, correction=0) - rows.std(0, correction=0)).abs().max()) < slack

    loaded = VectorQuantizer(8, 500, groups=groups, codebook=config)
    loaded.load_state_dict(quantizer.state_dict())
    loaded(batches[0])
    assert_bitwise_equal(loaded.codebook, quantizer.codebook)


@pytest.mark.parametrize(
    "config", [Frozen(features=torch.ones(4, 8)), Frozen(features=torch.ones(4, 8), projector=False)]
)
def test_other_frozen_codebooks_cannot_be_fitted(config: Frozen) -> None:
    with pytest.raises(ValueError, match="fit_codebook"):
        VectorQuantizer(8, 4, codebook=config).fit_codebook(torch.randn(20, 8))


@pytest.mark.parametrize("config", [Learned(), Ema(dead_after=5), OnlineClustering()])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_fit_codebook_puts_codes_on_kmeans_centres(config: Any, metric: str) -> None:
    quantizer = VectorQuantizer(8, 16, groups=2, codebook=config, metric=metric)
    batches = [torch.randn(30, 8) for _ in range(4)]
    spoiled = torch.cat([batches[0], torch.full((1, 8), torch.nan)])
    quantizer.fit_codebook([spoiled, *batches[1:]], max_iter=5, seed=3)
    x = torch.cat(batches).reshape(120, 2, 4)
    centres = [vqkernels.kmeans(x[:, g], 16, metric=metric, max_iter=5, seed=3).centroids for g in range(2)]
    assert_bitwise_equal(quantizer.state_dict()["table.weight"], torch.stack(centres))
    if isinstance(config, Ema):
        assert_bitwise_equal(quantizer.table.embed_sum, quantizer.table.weight)


def test_fit_codebook_in_the_width_of_the_codes() -> None:
    quantizer = make("learned", code_dim=4, channels_first=True)
    batch = torch.randn(6, 8, 7)
    quantizer.fit_codebook(batch)
    rows = quantizer.project_in(batch.movedim(1, -1)).detach().reshape(-1, 4)
    assert_bitwise_equal(quantizer.codebook[0], vqkernels.kmeans(rows, 32).centroids)


def test_fit_codebook_needs_enough_vectors() -> None:
    with pytest.raises(ValueError, match="num_clusters"):
        VectorQuantizer(8, 16).fit_codebook(torch.randn(10, 8))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Learned(init_scale=0.0), ValueError, "init_scale"),
        (lambda: Ema(decay=1.5), ValueError, "decay"),
        (lambda: Ema(eps=-1.0), ValueError, "eps"),
        (lambda: Ema(dead_after=0), ValueError, "dead_after"),
        (lambda: OnlineClustering(decay=1.0), ValueError, "decay"),
        (lambda: OnlineClustering(anchor="nearest"), ValueError, "anchor: expected one of closest, random"),
        (lambda: Frozen(features=torch.ones(3)), ValueError, "features"),
        (lambda: Frozen(features=torch.ones(3, 3, dtype=torch.int64)), TypeError, "features"),
        (lambda: Frozen(features=torch.ones(3, 3), projector_init="zeros"), ValueError, "projector_init"),
        (
            lambda: Frozen(features=torch.ones(3, 3), projector="conv"),
            ValueError,
            "projector: expected True or False or one of",
        ),
        (lambda: Frozen(features=torch.ones(3, 3), projector="mlp", hidden=0), ValueError, "hidden"),
        (
            lambda: Frozen(features=torch.ones(3, 3), projector=False, projector_init="matched"),
            ValueError,
            "projector_init",
        ),
    ],
)
def test_descriptions_are_checked_when_written(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
