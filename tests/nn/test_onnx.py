"""Operators and quantizers as ONNX files. Oracle: PyTorch; the data hold no codes that are nearly equally near."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exported import Calls, assert_same, run_onnx
from needs import import_library
from nn_oracle import COMPOSED, KINDS, compose

import vqkernels
from vqkernels.nn import LLAMAGEN_ENTROPY

CODES = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(3))
CODES[1, 3] = torch.nan
METRICS = ("l2", "cosine", "dot")

OPERATORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "nearest_code": lambda x: [vqkernels.nearest_code(x, CODES, metric=metric) for metric in METRICS],
    "top_codes": lambda x: [vqkernels.top_codes(x, CODES, 3, metric=metric) for metric in METRICS],
    "multilevel_nearest_code": lambda x: [
        vqkernels.multilevel_nearest_code(
            (x[:, 0], x[:, 1, :4]), (CODES[0], CODES[1, :, :4]), (0.5, 2.0), squared=squared
        )
        for squared in (False, True)
    ],
    "gather_codes": lambda x: vqkernels.gather_codes(CODES, (x[..., 0] * 3).long().clamp(min=-1)),
    "soft_assignment_entropy": lambda x: [
        vqkernels.soft_assignment_entropy(x, CODES, metric=metric, temperature=0.3, smoothing="clamp")
        for metric in (*METRICS, "euclidean")
    ],
}


def vectors(n: int) -> torch.Tensor:
    x = torch.randn(n, 2, 6)
    x[1, 0, 2], x[2] = torch.nan, 0
    return x


# few pairs at a time: a lookup takes many turns
@pytest.mark.parametrize("few", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [n if n == "nearest_code" else pytest.param(n, marks=pytest.mark.slow) for n in OPERATORS],
)
def test_an_operator(name: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import_library("onnxscript")
    from vqkernels.onnx import translations

    if not few:
        monkeypatch.setattr(translations, "_FEW", 0)
        monkeypatch.setattr(translations, "_PAIRS", 500)
    calls = Calls(torch.nn.Identity(), OPERATORS[name])
    x = vectors(33)
    assert_same(run_onnx(calls, vectors(9), x), calls(x))


@pytest.mark.slow
def test_distances_do_not_cancel_far_from_the_origin() -> None:
    codes = torch.randn(200, 8) + 100
    calls = Calls(torch.nn.Identity(), lambda x: vqkernels.nearest_code(x, codes))
    x = torch.randn(40, 8) + 100
    assert_same(run_onnx(calls, x[:5], x), calls(x))


def whole(quantizer: torch.nn.Module) -> Calls:
    """Encode, decode and forward, in one file."""

    def uses(x: torch.Tensor) -> Any:
        indices = quantizer.encode(x)
        quantized, found, loss, losses = quantizer(x)
        return indices, quantizer.decode(indices), quantized, found, loss, losses

    return Calls(quantizer, uses)


QUANTIZERS: dict[str, Callable[[], torch.nn.Module]] = {
    "learned": lambda: vqkernels.VectorQuantizer(8, 40, groups=2, code_dim=4, metric="cosine", channels_first=True),
    **{
        kind: lambda kind=kind: compose(kind, channels_first=True)
        for kind in (*KINDS, *COMPOSED)
        if kind != "learned"
    },
    "semantic": lambda: vqkernels.VectorQuantizer(
        8, 32, channels_first=True, codebook=vqkernels.SemanticClustering(num_classes=3, init_scale=1.0)
    ),
    "regularized": lambda: vqkernels.VectorQuantizer(
        8,
        32,
        channels_first=True,
        regularizers=[vqkernels.Regularizer(name="entropy", loss=LLAMAGEN_ENTROPY, weight=0.1)],
    ),
    "full": lambda: vqkernels.VectorQuantizer(8, 32, channels_first=True, gradient=vqkernels.FullCodebook()),
    "rotation": lambda: compose("residual", channels_first=True, gradient="rotation"),
}


@pytest.mark.parametrize(
    "kind", [k if k == "residual" else pytest.param(k, marks=pytest.mark.slow) for k in QUANTIZERS]
)
def test_a_quantizer(kind: str) -> None:
    calls = whole(QUANTIZERS[kind]().eval())
    x = torch.randn(5, 8, 3, 2)
    assert_same(run_onnx(calls, x[:2], x), calls(x))


@pytest.mark.parametrize(
    "kind", [k if k in ("learned", "residual") else pytest.param(k, marks=pytest.mark.slow) for k in QUANTIZERS]
)
def test_a_trace_of_encode_and_decode_can_be_saved(kind: str) -> None:
    quantizer = QUANTIZERS[kind]().eval()

    class Reconstruct(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            indices = self.quantizer.encode(x)
            return indices, self.quantizer.decode(indices)

    module, file, x = Reconstruct(), io.BytesIO(), torch.randn(5, 8, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, x[:2]), file)
    file.seek(0)
    for got, want in zip(torch.jit.load(file)(x), module(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["learned", "residual"])
def test_a_script_is_refused_in_one_line(kind: str) -> None:
    message = (
        r"^torch\.jit\.script: expected modules that it can compile, got \w+Codebook; torch\.jit\.trace takes it .*$"
    )
    module = torch.nn.Sequential(QUANTIZERS[kind]().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(NotImplementedError, match=message):
            torch.jit.script(module)


@pytest.mark.parametrize(
    "kind", [k if k in ("learned", "residual") else pytest.param(k, marks=pytest.mark.slow) for k in QUANTIZERS]
)
def test_encode_and_decode_export_with_any_batch_size(kind: str) -> None:
    calls, x = whole(QUANTIZERS[kind]().eval()), torch.randn(5, 8, 3, 2)
    program = torch.export.export(calls, (x[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    for got, want in zip(program.module()(x), calls(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["learned", "residual", "semantic"])
def test_an_aotinductor_package(kind: str, tmp_path: Any) -> None:
    calls, x = whole(QUANTIZERS[kind]().eval()), torch.randn(5, 8, 3, 2)
    program = torch.export.export(calls, (x[:3],), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "quantizer.pt2"))
    assert_same(list(torch._inductor.aoti_load_package(path)(x)), calls(x))
