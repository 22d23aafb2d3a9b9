"""The quantizer under tensors without data, ``torch.compile`` and ``torch.export``. Oracle: the eager module."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from nn_oracle import COMPOSED, KINDS, compose, make, snapshot
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

import vqkernels
from vqkernels.testing import assert_bitwise_equal


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "matched"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_training_step_never_asks_for_the_value_of_a_tensor(kind: str, metric: str) -> None:
    # a fake tensor has no values: .item(), bool(), nonzero() on one raise
    with FakeTensorMode(allow_non_fake_inputs=True):
        quantizer = vqkernels.VectorQuantizer(8, 32, codebook=KINDS[kind](32), metric=metric, groups=2)
        fake_step(quantizer)
        assert [tensor.shape for tensor in quantizer.usage()] == [torch.Size([])] * 3


@pytest.mark.parametrize("kind", COMPOSED)
def test_neither_does_one_of_several_parts(kind: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake_step(COMPOSED[kind](8, 32))


def fake_step(quantizer: torch.nn.Module) -> None:
    x = torch.randn(2, 9, 8, requires_grad=True)
    out = quantizer(x, torch.rand(2, 9) > 0.5)
    (out.quantized.sum() + out.loss).backward()
    assert out.quantized.shape == x.shape


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x[x > 0].sum(),
        lambda x: (x > 0).nonzero(),
        lambda x: x.unique(),
        lambda x: x.sum().tolist(),
    ],
)
def test_a_question_is_noticed(question: Callable[[torch.Tensor], object]) -> None:
    class Curious(vqkernels.VectorQuantizer):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> vqkernels.QuantizerOutput:
            question(x)
            return super().forward(x, mask)

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
    ):
        fake_step(Curious(8, 32))


@pytest.mark.parametrize(
    ("kind", "compiler"),
    [
        ("ema", "inductor"),
        *(
            # what is put together of several parts is compiled in test_compose, too
            pytest.param(kind, "aot_eager", marks=pytest.mark.slow)
            for kind in (
                "learned",
                "nested",
                "ema-revived",
                "online-closest",
                "online-drawn",
                "online-random",
                "frozen",
                "sampled",
                "residual",
            )
        ),
    ],
)
def test_one_graph_serves_every_batch_size_forward_and_backward(kind: str, compiler: str) -> None:
    torch._dynamo.reset()  # graphs of other tests count against the limit of this one
    eager = compose(kind, metric="cosine", code_dim=4, **({"groups": 2} if kind in KINDS else {}))
    module = copy.deepcopy(eager)
    graph = torch.compile(module, fullgraph=True, dynamic=True, backend=compiler)
    # aot_eager runs the kernels of eager mode; inductor compiles others, which round in another order
    assert_same = assert_bitwise_equal if compiler == "aot_eager" else torch.testing.assert_close
    for n in (5, 9):
        x, mask = torch.randn(2, n, 8), torch.rand(2, n) > 0.3
        want, got = _step(eager, x, mask), _step(graph, x, mask)
        assert torch.equal(got["indices"], want["indices"])
        for name in want:
            assert_same(got[name], want[name])
        state = snapshot(module)
        for name, tensor in snapshot(eager).items():
            assert_same(state[name], tensor)


def _step(quantizer: Callable[..., vqkernels.QuantizerOutput], x: torch.Tensor, mask: torch.Tensor) -> dict:
    x = x.clone().requires_grad_()
    out = quantizer(x, mask)
    (out.quantized.square().sum() + out.loss).backward()
    return {"indices": out.indices, "quantized": out.quantized.detach(), "loss": out.loss.detach(), "grad": x.grad}


@pytest.mark.parametrize(
    "kind",
    [
        "ema",
        "residual",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("online-closest", "matched", "nested")),
    ],
)
def test_export_in_evaluation_with_any_batch_size(kind: str) -> None:
    quantizer = compose(kind, code_dim=4, channels_first=True, **({"groups": 2} if kind in KINDS else {})).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(quantizer, (torch.randn(3, 8, 4, 4),), dynamic_shapes={"x": {0: batch}})
    x = torch.randn(7, 8, 4, 4)
    got, want = program.module()(x), quantizer(x)
    assert torch.equal(got.indices, want.indices)
    assert_bitwise_equal(got.quantized, want.quantized)
    assert_bitwise_equal(got.loss, want.loss)


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [
        *(
            (kind, gradient)
            for kind in ("learned", "ema-revived", "nested", "residual")
            for gradient in ("ste", "rotation")
        ),
        ("learned", vqkernels.FullCodebook()),
        ("matched", vqkernels.FullCodebook()),
    ],
    ids=str,
)
def test_a_trace_in_evaluation_can_be_saved_and_takes_any_batch_size(kind: str, gradient: object) -> None:
    options = {"groups": 2, "metric": "cosine"} if kind in KINDS else {}
    quantizer = compose(kind, code_dim=4, gradient=gradient, **options).eval()

    class Values(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.quantizer = torch.nn.Linear(8, 8), quantizer

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.quantizer(self.encoder(x))[:2]

    module, file = Values(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.randn(3, 8)), file)
        file.seek(0)
        loaded = torch.jit.load(file)
    x = torch.randn(7, 8)
    given = [x.clone().requires_grad_() for _ in range(2)]
    (got, indices), (want, expected) = loaded(given[0]), module(given[1])
    assert torch.equal(indices, expected)
    assert_bitwise_equal(got, want)
    gradients = [torch.autograd.grad(t.square().sum(), g)[0] for t, g in zip((got, want), given, strict=True)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_built_without_data_has_all_it_needs_once_it_is_loaded(kind: str) -> None:
    built = make(kind)
    with torch.device("meta"):
        module = vqkernels.VectorQuantizer(8, 32, codebook=KINDS[kind](32))
    # what to_empty gives in the worst case
    module._apply(lambda t: torch.zeros_like(t, device="cpu").fill_(torch.nan if t.is_floating_point() else 1))
    module.load_state_dict(built.state_dict())
    x = torch.randn(20, 8)
    for training in (False, True):
        for got, want in zip(*(m.train(training)(x)[:3] for m in (module, built)), strict=True):
            assert_bitwise_equal(got, want)
    for name, tensor in snapshot(built).items():
        assert_bitwise_equal(snapshot(module)[name], tensor)
