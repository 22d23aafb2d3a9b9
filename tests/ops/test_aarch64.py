"""The kernels of an AArch64 processor, emulated, return the bits that the kernels of this processor return.

Those meet the definition in the tests of each op. Entropies, whose bits depend on the instruction set, meet the
oracle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from aarch64 import Processor, compile_driver, kernels_on, missing_tools
from isa_problems import AARCH64, differences, on_isa, same_bits
from needs import needs_extension
from test_soft_assignment_entropy import METRICS as SOFT_METRICS
from test_soft_assignment_entropy import check as check_entropy
from variants import processor_isas

from vqkernels import nearest_code, top_codes
from vqkernels.testing import PROBLEMS, lookup_problem

pytestmark = [
    pytest.mark.slow,
    needs_extension,
    pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "the machine has all tools"),
]

each_isa = pytest.mark.parametrize("isa", AARCH64)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processor]:
    processor = Processor(compile_driver(tmp_path_factory.mktemp("aarch64")))
    yield processor
    processor.close()


def test_neon_is_picked_and_no_other_architecture(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor.build_info()["isa"] == "neon"
    monkeypatch.setenv("VQKERNELS_ISA", "avx2")
    with kernels_on(processor), pytest.raises(ValueError, match="instruction set avx2: not supported"):
        nearest_code(torch.zeros(1, 1), torch.zeros(1, 1), backend="cpu")


def test_small_problems(processor: Processor) -> None:
    assert list(differences(range(600), processor_isas()[-1:], processor, 30_000)) == []


@pytest.mark.parametrize("problem", PROBLEMS)
def test_many_codes(problem: str, processor: Processor) -> None:
    """Few vectors, so that threads divide the codes; long lists of codes."""
    torch.set_num_threads(2)
    for n, k, d, m in ((5, 20_003, 3, 0), (9, 3000, 7, 200)):
        x, codebook = lookup_problem(problem, n, k, d)

        def search(m: int = m, x: torch.Tensor = x, codebook: torch.Tensor = codebook) -> tuple[torch.Tensor, ...]:
            if m:
                return tuple(top_codes(x, codebook, m, backend="cpu"))
            return tuple(nearest_code(x, codebook, backend="cpu"))

        expected = search()
        with kernels_on(processor):
            assert same_bits(on_isa("neon", search), expected)


def test_a_tree_of_codes_is_searched(processor: Processor) -> None:
    shares = []

    def call(name: str, *args: Any) -> Any:
        shares.append(Processor.call(processor, name, *args))
        return shares[-1]

    for problem in ("gaussian", "near-ties", "duplicates", "nonfinite"):
        x, codebook = lookup_problem(problem, 2900, 4000, 4)
        expected = nearest_code(x, codebook, backend="cpu")
        with kernels_on(processor), mock.patch.object(processor, "call", call):
            assert same_bits(nearest_code(x, codebook, backend="cpu"), expected), problem
    assert 0 < min(shares) < 0.5  # of all pairs of vector and code


@each_isa
@pytest.mark.parametrize("metric", SOFT_METRICS)
def test_entropies(metric: str, isa: str, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    cases = itertools.product(((5, 2, 3), (67, 129, 5), (13, 300, 33), (5, 40, 517)), (torch.float32, torch.float64))
    for (n, k, d), dtype in cases:
        x, codebook = lookup_problem("gaussian", n, k, d, dtype=dtype)
        for temperature, smoothing in ((1e-2, "none"), (1.0, "none"), (10.0, "clamp")):
            with kernels_on(processor):
                check_entropy(x, codebook, temperature, metric, "cpu", smoothing=smoothing)
