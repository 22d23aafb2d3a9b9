"""Tensors on a device that no backend is for. Oracle: the same calls on the CPU. Run by test_devices.py."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import stand_in
import torch

import vqkernels
from vqkernels._core import devices
from vqkernels.testing import assert_bitwise_equal

X, CODES = torch.randn(12, 2, 4), torch.randn(2, 7, 4)
INDICES = torch.randint(-1, 7, (12, 2))

CALLS: dict[str, Callable[..., Any]] = {
    "nearest_code": lambda x, codes, indices: vqkernels.nearest_code(x, codes),
    "top_codes": lambda x, codes, indices: vqkernels.top_codes(x, codes, 3, metric="cosine"),
    "multilevel_nearest_code": lambda x, codes, indices: vqkernels.multilevel_nearest_code(
        x.unbind(1), codes.unbind(0), (1.0, 0.5)
    ),
    "gather_codes": lambda x, codes, indices: vqkernels.gather_codes(codes, indices),
    "code_stats": lambda x, codes, indices: vqkernels.code_stats(x, indices, 7, groups=2),
    "code_range": lambda x, codes, indices: vqkernels.code_range(x, indices, 7, groups=2),
}


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in.install()
    monkeypatch.setattr(devices, "_told", set())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "vqkernels: no kernels for standin")
        yield


def there(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(stand_in.NAME) for tensor in tensors]


def assert_same(got: Any, want: Any) -> None:
    got, want = ([each] if isinstance(each, torch.Tensor) else each for each in (got, want))
    for a, b in zip(got, want, strict=True):
        assert a.device.type == stand_in.NAME
        assert_bitwise_equal(a.cpu(), b)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_gives_the_bits_of_the_cpu(name: str) -> None:
    assert_same(CALLS[name](*there(X, CODES, INDICES)), CALLS[name](X, CODES, INDICES))


def test_what_is_written_in_place_is_written() -> None:
    state = [torch.rand(7, 4), torch.rand(7), torch.rand(7, 4)]
    step = vqkernels.code_stats(X[:, 0], INDICES[:, 0], 7)
    copies = there(*state)
    vqkernels.ema_update_(*copies, *there(*step), decay=0.9)
    vqkernels.ema_update_(*state, *step, decay=0.9)
    assert_same(copies, state)


def test_gradients_reach_the_device() -> None:
    results = []
    for x, codes in ((X, CODES), there(X, CODES)):
        given = [t.clone().requires_grad_() for t in (x, codes)]
        entropy = vqkernels.soft_assignment_entropy(*given, temperature=0.5)
        loss = vqkernels.quantize(*given).quantized.square().sum() + (entropy.sample - entropy.usage).sum()
        results.append(torch.autograd.grad(loss, given))
    for want, got in zip(*results, strict=True):
        assert got.device.type == stand_in.NAME
        torch.testing.assert_close(got.cpu(), want)


def test_it_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            vqkernels.nearest_code(*there(X, CODES))
            vqkernels.gather_codes(*there(CODES, INDICES))
    said = [str(warning.message) for warning in caught if "vqkernels" in str(warning.message)]
    assert said == ["vqkernels: no kernels for standin, its tensors go through the CPU"]


def test_a_backend_by_name_runs_on_the_device_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, indices = there(CODES, INDICES)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "on_the_cpu", None)
        assert_same(
            vqkernels.gather_codes(codes, indices, backend="reference"), vqkernels.gather_codes(CODES, INDICES)
        )
    with pytest.raises(NotImplementedError, match=r"'cpu' cannot run: tensor on standin:0, this backend needs cpu$"):
        vqkernels.gather_codes(codes, indices, backend="cpu")
    with vqkernels.use_backend("triton"), pytest.raises(NotImplementedError, match="tensor on standin:0"):
        vqkernels.gather_codes(codes, indices)


def test_explain_tells_what_runs() -> None:
    arguments = there(CODES, INDICES)
    assert vqkernels.explain("gather_codes", *arguments) == vqkernels.explain("gather_codes", CODES, INDICES)
    (cpu,) = [c for c in vqkernels.explain("gather_codes", *arguments, backend="cpu") if c.backend == "cpu"]
    assert (cpu.selected, cpu.reasons) == (False, ("tensor on standin:0, this backend needs cpu",))


def test_kmeans_gives_the_bits_of_the_cpu() -> None:
    x = torch.randn(60, 4)
    want, got = vqkernels.kmeans(x, 5), vqkernels.kmeans(*there(x), 5)
    assert_same(got[:2], want[:2])
    assert got[2:] == want[2:]


QUANTIZERS: dict[str, Callable[[], torch.nn.Module]] = {
    "learned": lambda: vqkernels.VectorQuantizer(
        8,
        16,
        code_dim=4,
        metric="cosine",
        regularizers=[vqkernels.Regularizer(name="entropy", loss=vqkernels.nn.LFQ_ENTROPY, weight=0.1)],
    ),
    "ema": lambda: vqkernels.VectorQuantizer(8, 16, groups=2, codebook=vqkernels.Ema(dead_after=1)),
    "online": lambda: vqkernels.VectorQuantizer(8, 16, codebook=vqkernels.OnlineClustering(anchor="closest")),
    "drawn": lambda: vqkernels.VectorQuantizer(8, 16, codebook=vqkernels.OnlineClustering(anchor="probabilistic")),
    "semantic": lambda: vqkernels.VectorQuantizer(
        8, 16, codebook=vqkernels.SemanticClustering(num_classes=3, levels=4)
    ),
    "frozen": lambda: vqkernels.VectorQuantizer(
        8, 16, codebook=vqkernels.Frozen(features=torch.randn(16, 6), projector_init="matched")
    ),
    "residual": lambda: vqkernels.ResidualQuantizer.build(2, 8, 16, codebook=vqkernels.Ema(), dropout=0.5),
    "VectorQuantize": lambda: vqkernels.VectorQuantize(8, 16, threshold_ema_dead_code=2),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantizer_trains_and_is_used_there(kind: str) -> None:
    torch.manual_seed(1)
    quantizer = QUANTIZERS[kind]()
    moved, x = copy.deepcopy(quantizer).to(stand_in.NAME), torch.randn(5, 6, 8)
    if kind in ("ema", "frozen"):
        quantizer.fit_codebook(x), moved.fit_codebook(*there(x))
    for training in (True, False):
        want, got = quantizer.train(training)(x), moved.train(training)(*there(x))
        torch.testing.assert_close(got[0].cpu(), want[0])
        assert torch.equal(got[1].cpu(), want[1])
        torch.testing.assert_close(got[2].cpu(), want[2])
        state = moved.state_dict()
        for name, tensor in quantizer.state_dict().items():
            torch.testing.assert_close(state[name].cpu(), tensor, msg=lambda text, name=name: f"{name}: {text}")
