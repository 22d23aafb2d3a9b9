"""The kernels of other processors, emulated, return the bits that the kernels of this processor return.

Those meet the definition in the tests of each op. Entropies, whose bits depend on the instruction set, meet the
oracle, and scores of integers and of tiles their bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_group_bounds as bounds
import test_nearest_code_integers as integers
import test_nearest_code_tiles as tiles
import torch
from emulated import AARCH64, MACHINES, X86, Machine, Processor, compile_driver, kernels_on, missing_tools
from isa_problems import differences, on_isa, same_bits
from needs import needs_extension
from test_soft_assignment_entropy import METRICS as SOFT_METRICS
from test_soft_assignment_entropy import check as check_entropy
from variants import BYTES, INTEGERS, ISA_FLAGS, NARROW, processor_isas

from vqkernels import nearest_code, top_codes
from vqkernels.testing import PROBLEMS, lookup_problem

pytestmark = [pytest.mark.slow, needs_extension]

MISSING = {machine: missing_tools(machine) for machine in MACHINES.values()}


def emulated(machine: Machine, *values: Any) -> Any:
    """A parameter set that wants the tools of a machine."""
    reason = MISSING[machine]
    marks = pytest.mark.skipif(bool(reason), reason=reason or "the machine has all tools")
    return pytest.param(machine, *values, marks=marks, id="-".join([machine.name, *map(str, values)]))


each_machine = pytest.mark.parametrize("machine", [emulated(machine) for machine in MACHINES.values()])
each_isa = pytest.mark.parametrize(
    ("machine", "isa"), [emulated(machine, isa) for machine in MACHINES.values() for isa in machine.isas]
)


class Programs:
    """Compiled and started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[Machine, Path] = {}
        self.processors: dict[Machine, Processor] = {}

    def path(self, machine: Machine) -> Path:
        if machine not in self.paths:
            folder = self.folder / machine.name
            folder.mkdir()
            self.paths[machine] = compile_driver(machine, folder)
        return self.paths[machine]

    def __getitem__(self, machine: Machine) -> Processor:
        if machine not in self.processors:
            self.processors[machine] = Processor(machine, self.path(machine))
        return self.processors[machine]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    programs = Programs(tmp_path_factory.mktemp("emulated"))
    yield programs
    for processor in programs.processors.values():
        processor.close()


@pytest.mark.parametrize(
    ("machine", "isa"),
    [
        *(emulated(AARCH64, isa) for isa in ("neon", "neon_int8")),
        *(emulated(X86, isa) for isa in (*BYTES[:-1], "avx512", "amx")),
    ],
)
def test_the_best_is_picked_and_what_a_processor_lacks_refused(
    machine: Machine, isa: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ISA_FLAGS[isa] | (ISA_FLAGS["avx2"] if machine is X86 else set())
    problem = lookup_problem("gaussian", 300, 200, 33)
    expected = nearest_code(problem.x, problem.codebook, backend="reference")
    with closing(Processor(machine, programs.path(machine), flags)) as processor, kernels_on(processor):
        assert processor.build_info()["isa"] == isa
        # its ways to scan are timed, and one is chosen
        assert same_bits(tuple(nearest_code(problem.x, problem.codebook, backend="cpu")), tuple(expected))
        for name, needed in ISA_FLAGS.items():
            monkeypatch.setenv("VQKERNELS_ISA", name)
            if needed <= flags:
                assert nearest_code(torch.zeros(1, 1), torch.zeros(1, 1), backend="cpu").indices.item() == 0
                continue
            with pytest.raises(ValueError, match=f"instruction set {name}: not supported"):
                nearest_code(torch.zeros(1, 1), torch.zeros(1, 1), backend="cpu")


@each_machine
def test_small_problems(machine: Machine, programs: Programs) -> None:
    assert list(differences(range(600), processor_isas()[-1:], [programs[machine]], 30_000)) == []


@each_isa
@pytest.mark.parametrize("problem", PROBLEMS)
def test_many_codes(problem: str, machine: Machine, isa: str, programs: Programs) -> None:
    """Few vectors, so that threads divide the codes; long lists of codes; so many vectors that narrow scans run."""
    torch.set_num_threads(2)
    for n, k, d, m in ((5, 20_003, 3, 0), (9, 3000, 7, 200), (300, 200, 33, 0)):
        x, codebook = lookup_problem(problem, n, k, d)

        def search(m: int = m, x: torch.Tensor = x, codebook: torch.Tensor = codebook) -> tuple[torch.Tensor, ...]:
            if m:
                return tuple(top_codes(x, codebook, m, backend="cpu"))
            return tuple(nearest_code(x, codebook, backend="cpu"))

        expected = search()
        with kernels_on(programs[machine]):
            assert same_bits(on_isa(isa, search), expected)


@each_isa
def test_a_tree_of_codes_is_searched(machine: Machine, isa: str, programs: Programs) -> None:
    processor, shares = programs[machine], []

    def call(name: str, *args: Any) -> Any:
        shares.append(Processor.call(processor, name, *args))
        return shares[-1]

    for problem in ("gaussian", "near-ties", "duplicates", "nonfinite"):
        x, codebook = lookup_problem(problem, 2900, 4000, 4)

        def search(x: torch.Tensor = x, codebook: torch.Tensor = codebook) -> tuple[torch.Tensor, ...]:
            return tuple(nearest_code(x, codebook, backend="cpu"))

        expected = search()
        with kernels_on(processor), mock.patch.object(processor, "call", call):
            assert same_bits(on_isa(isa, search), expected), problem
    assert 0 < min(shares) < 0.5  # of all pairs of vector and code


@each_isa
def test_bounds(machine: Machine, isa: str, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels_on(programs[machine]):
        for kind in ("low rank", "near ties", "tiny", "far"):
            bounds.test_the_bits_are_those_of_a_lookup_and_bounds_are_true(kind, isa, monkeypatch)
        bounds.test_codes_that_only_float64_tells_apart(isa, monkeypatch)


@pytest.mark.parametrize(
    ("machine", "isa"),
    [emulated(machine, isa) for machine in MACHINES.values() for isa in machine.isas if isa not in NARROW],
)
@pytest.mark.parametrize("metric", SOFT_METRICS)
def test_entropies(
    metric: str, machine: Machine, isa: str, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    cases = itertools.product(((5, 2, 3), (67, 129, 5), (13, 300, 33), (5, 40, 517)), (torch.float32, torch.float64))
    for (n, k, d), dtype in cases:
        x, codebook = lookup_problem("gaussian", n, k, d, dtype=dtype)
        for temperature, smoothing in ((1e-2, "none"), (1.0, "none"), (10.0, "clamp")):
            with kernels_on(programs[machine]):
                check_entropy(x, codebook, temperature, metric, "cpu", smoothing=smoothing)


@pytest.mark.parametrize(
    ("machine", "isa"),
    [emulated(machine, isa) for machine in MACHINES.values() for isa in machine.isas if isa in INTEGERS],
)
def test_scores_of_integers(machine: Machine, isa: str, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels_on(programs[machine]):
        for kind in integers.KINDS:
            integers.test_scores_are_bounded_from_below(kind, isa)
        integers.test_a_score_is_the_score_of_its_own_code(isa)
        for n, k in ((100, 64), (5000, 64), (50, 3000)):
            integers.test_codes_that_integers_cannot_tell_apart_are_told_apart(n, k, isa, monkeypatch)
        for threads in (1, 2):
            integers.test_codes_that_come_nearer_and_nearer(threads, isa, monkeypatch)


@pytest.mark.parametrize("machine", [emulated(X86)])
@pytest.mark.parametrize("products", [1, 3])
@pytest.mark.parametrize("unit", ["amx_bf16", "amx_rounds_up"])
def test_scores_of_tiles(unit: str, products: int, machine: Machine, programs: Programs) -> None:
    processor = Processor(machine, programs.path(machine), machine.flags | {unit})
    with closing(processor), kernels_on(processor):
        for kind in tiles.KINDS:
            tiles.test_scores_are_bounded_from_below(kind, products)
        tiles.test_a_score_is_the_score_of_its_own_code(products)
