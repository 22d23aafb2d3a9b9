"""The benchmark: every case runs and passes its gate, the gate catches what it must, results survive the file.

Nothing here asserts a time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqkernels
from bench import compare, plot, readme, record, run, table
from bench.case import Call, Implementation, OpCase, Verdict, Work
from bench.ceiling import Ceiling
from bench.device import Cpu
from bench.gate import U32, SquaredL2, checked_rows
from bench.kmeans.cases import verify as verify_kmeans
from bench.kmeans.cases import wrong_share
from bench.kmeans.problem import ClusterProblem
from bench.kmeans.pruning import FAISS_SUPER, SUPERKMEANS, Pruned, faiss_draw, ordered, superkmeans_draw
from bench.machine import ROOT, slug
from bench.memory import peak_bytes
from bench.nearest_code.cases import verify
from bench.nearest_code.cosine import CosineProblem
from bench.nearest_code.leech import golay_code, leech_codebook, leech_vectors
from bench.ours import OURS
from bench.registry import OPS, cases_on, find_case
from bench.test_benchmarks import CASES as PYTEST_CASES
from bench.test_benchmarks import gated
from bench.timing import Timing, measure, summarize
from vqkernels.testing import LookupProblem

OPTIONS = run.Options(threads=1, rounds=1, min_seconds=0.0, seed=0, ceiling_seconds=0.02)
DEVICE = Cpu(threads=1, settle_seconds=0.0)
OUR_NAME = frozenset({"ours"})


@pytest.mark.parametrize("op", OPS)
def test_every_case_runs_and_passes_its_gate(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    assert run.main(["--op", op, "--smoke", "--threads", "1", "--json", str(path)]) == 0
    result = record.load(path)
    cases = cases_on(op, "cpu")
    assert [case.name for case in result.cases] == [case.name for case in cases]
    assert not result.complete  # tiny sizes are no result
    for case, measured in zip(cases, result.cases, strict=True):
        present = {m.implementation for m in measured.measurements}
        assert present | set(measured.skipped) == {i.name for i in case.implementations}
        assert not any(reason.startswith("failed") for reason in measured.skipped.values())
        assert all(m.timing is not None and m.verdict.checked for m in measured.measurements)
        assert measured.ours.verdict.passed
        assert measured.ours.verdict.different == 0
        assert (measured.best_peer is None) == (present == {OURS})
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in result.cases)
    assert result.environment["commit"] in printed


def test_cases_keep_the_true_codebook() -> None:
    for case in OPS["nearest_code"]:
        assert set(case.true_sizes) <= {"N"}, "only N may be scaled"
        assert all(case.true_sizes[letter] > case.sizes[letter] for letter in case.true_sizes)
        problem = case.inputs(case.smoke().sizes, 0)
        groups = (case.sizes["G"],) if case.sizes["G"] > 1 else ()
        assert problem.x.shape == (case.smoke().sizes["N"], *groups, case.sizes["D"])
        assert problem.codebook.shape == (*groups, case.smoke().sizes["K"], case.sizes["D"])
        # work counted by hand: a multiply and an add per coordinate of a pair
        n, k, d, g = (case.sizes[letter] for letter in "NKDG")
        assert case.work(case.sizes).flops == 2 * d * case.work(case.sizes).pairs == 2 * d * n * k * g


def test_codes_of_the_leech_lattice() -> None:
    # oracle: the known weights of the Golay code, and how many vectors each makes which angle with
    assert np.bincount(golay_code().sum(axis=1)).nonzero()[0].tolist() == [0, 8, 12, 16, 24]
    assert (golay_code().sum(axis=1) == 8).sum() == 759
    vectors = leech_vectors().astype(np.int64)
    assert len({vector.tobytes() for vector in vectors}) == 196_560
    for vector in vectors[[0, 5000, 150_000]]:
        products, counts = np.unique(vectors @ vector, return_counts=True)
        assert products.tolist() == [-32, -16, -8, 0, 8, 16, 32]
        assert counts.tolist() == [1, 4600, 47104, 93150, 47104, 4600, 1]
    assert torch.allclose(leech_codebook().double().norm(dim=1), torch.ones(1).double(), rtol=24 * U32)


def test_a_cosine_is_not_a_distance_and_a_peer_may_miss_by_rounding() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    codebook = torch.tensor([[1.0, 1.0], [10.0, 0.0], [1.0 + 2.0**-22, 1.0], [0.0, 0.0]])
    right = torch.tensor([1, 0])
    problem = CosineProblem(x, codebook)
    assert torch.equal(vqkernels.nearest_code(x, codebook, metric="cosine").indices, right)
    by_rounding, nearest, nothing = torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor([1, 3])
    verdicts = verify(problem, {"ours": right, "peer": by_rounding, "l2": nearest, "zero": nothing}, OUR_NAME)
    assert verdicts["ours"].passed
    assert (verdicts["peer"].different, verdicts["peer"].passed) == (1, True)
    assert [verdicts[name].wrong for name in ("l2", "zero")] == [1, 1]
    assert not verify(problem, {"ours": by_rounding, "peer": right}, OUR_NAME)["ours"].passed


def _injected(answer: Callable[[LookupProblem], torch.Tensor], *, ours: bool) -> OpCase:
    """A small case with the answers of ``answer`` in the place of ours, or beside ours as the only peer."""

    def prepare(problem: LookupProblem) -> Call:
        return lambda: answer(problem)

    case = find_case("nearest_code", "k8192-d8").smoke()
    right = next(i for i in case.implementations if i.name == OURS)
    injected = dataclasses.replace(right, name=OURS if ours else "injected", prepare=prepare, ours=ours)
    peer = dataclasses.replace(right, name="right" if ours else OURS, ours=not ours)
    return dataclasses.replace(case, implementations=(injected, peer))


def _one_off(problem: LookupProblem) -> torch.Tensor:
    return (vqkernels.nearest_code(*problem).indices + 1) % problem.codebook.shape[0]


def test_a_wrong_answer_of_ours_is_not_timed_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(OPS, "nearest_code", (_injected(_one_off, ours=True),))
    path = tmp_path / "result.json"
    assert run.main(["--op", "nearest_code", "--smoke", "--threads", "1", "--json", str(path)]) == 1
    (case,) = record.load(path).cases
    assert case.ours.timing is None
    assert case.ours.verdict.different == case.ours.verdict.checked
    assert case.speedup is None
    assert "RED GATE" in capsys.readouterr().out


def test_a_wrong_peer_is_timed_flagged_and_never_the_best() -> None:
    case = run.run_case(_injected(_one_off, ours=False), DEVICE, OPTIONS)
    peer = next(m for m in case.measurements if not m.ours)
    assert peer.timing is not None
    assert not peer.verdict.passed
    assert "WRONG" in str(peer.verdict)
    assert case.ours.verdict.passed
    assert case.best_peer is None


@pytest.mark.parametrize(
    "answer", [lambda p: torch.full((len(p.x),), 10**6), lambda p: torch.zeros(1, dtype=torch.int64)]
)
def test_an_answer_out_of_range_or_of_another_shape_is_wrong(answer: Callable[[LookupProblem], torch.Tensor]) -> None:
    problem = LookupProblem(torch.randn(20, 4), torch.randn(7, 4))
    answers = {"ours": vqkernels.nearest_code(*problem).indices, "peer": answer(problem)}
    verdicts = verify(problem, answers, OUR_NAME)
    assert verdicts["ours"].passed
    assert verdicts["peer"].wrong == 20


def test_the_gate_sees_rows_whose_truth_was_not_computed() -> None:
    # one wrong answer in a row outside the checked subset: only the peer's nearer code gives it away
    problem = LookupProblem(torch.randn(2000, 4), torch.randn(50, 4))
    right = vqkernels.nearest_code(*problem).indices
    checked = set(checked_rows(SquaredL2(*problem), 1).tolist())
    row = next(n for n in range(2000) if n not in checked)
    wrong = right.clone()
    wrong[row] = (right[row] + 1) % 50
    verdicts = verify(problem, {"ours": wrong, "peer": right}, OUR_NAME)
    assert verdicts["ours"] == Verdict(2000, checked=512, different=0, wrong=0, beaten=1, passed=False)
    assert verify(problem, {"ours": right, "peer": wrong}, OUR_NAME)["ours"].passed


def test_a_peer_may_miss_by_rounding_and_ours_may_not() -> None:
    # |x - c|^2 is 1 for code 0 and 1 + 2^-22 for code 1, less than a float32 evaluation can tell apart in general
    problem = LookupProblem(torch.zeros(3, 1), torch.tensor([[1.0], [-(1.0 + 2.0**-23)]]))
    first, second = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    verdicts = verify(problem, {"ours": first, "peer": second}, OUR_NAME)
    assert (verdicts["peer"].different, verdicts["peer"].wrong, verdicts["peer"].passed) == (3, 0, True)
    assert not verify(problem, {"ours": second, "peer": first}, OUR_NAME)["ours"].passed


def test_ours_must_take_the_lower_of_equal_codes() -> None:
    problem = LookupProblem(torch.zeros(3, 2), torch.ones(4, 2))
    low, high = torch.zeros(3, dtype=torch.int64), torch.full((3,), 3)
    assert not verify(problem, {"ours": high, "peer": low}, OUR_NAME)["ours"].passed
    assert verify(problem, {"ours": low, "peer": high}, OUR_NAME)["peer"].passed


def test_cancellation_far_from_the_origin_is_called_wrong() -> None:
    # oracle: the budget of centred data, which does not grow with the offset as the error of the formula does
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(n, 8, generator=generator) + 1e4 for n in (200, 500))
    expanded = (codebook.square().sum(1) - 2 * x @ codebook.t()).argmin(1)
    answers = {"ours": vqkernels.nearest_code(x, codebook).indices, "peer": expanded}
    verdicts = verify(LookupProblem(x, codebook), answers, OUR_NAME)
    assert verdicts["ours"].passed
    assert verdicts["peer"].wrong > 100


def test_every_implementation_is_visited_in_every_round() -> None:
    order: list[str] = []
    calls: dict[str, Call] = {name: (lambda name=name: order.append(name)) for name in "abc"}  # type: ignore[misc]
    rounds: list[int] = []
    timings = measure(calls, DEVICE, rounds=4, min_seconds=0.0, between=rounds.append)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert rounds == [0, 1, 2, 3]
    assert all(timing.samples == 4 for timing in timings.values())


def test_who_takes_long_gets_fewer_rounds() -> None:
    order: list[str] = []
    calls: dict[str, Call] = {name: (lambda name=name: order.append(name)) for name in "ab"}  # type: ignore[misc]
    timings = measure(calls, DEVICE, rounds=3, min_seconds=0.0, max_seconds=0.0)
    assert order == ["a", "b"]
    assert {timing.samples for timing in timings.values()} == {1}


def test_inertia_is_judged_by_its_excess() -> None:
    case = find_case("kmeans", "k1000-d64").smoke()
    problem = case.inputs(case.sizes, 0)
    best = vqkernels.kmeans(problem.x, len(problem.start), init=problem.start).centroids
    verdicts = case.verify(problem, {"broken": best * torch.nan, "ours": best, "peer": best + 0.5}, OUR_NAME)
    # oracle: a centroid 0.5 off the mean of its rows adds D / 4 for each, or less where rows change their cluster
    inertia = float(vqkernels.nearest_code(problem.x, best).distance.double().sum())
    assert (verdicts["ours"].passed, str(verdicts["ours"])) == (True, "+0.000%")
    assert 0.005 < (verdicts["peer"].excess or 0) <= 1.0001 * len(problem.x) * 16 / inertia
    assert str(verdicts["peer"]).startswith("WRONG +")
    assert not verdicts["broken"].passed


@pytest.mark.parametrize("draw", [superkmeans_draw, faiss_draw], ids=["superkmeans", "faiss"])
def test_peers_that_draw_their_start_are_handed_it(draw: Callable[[int, int], np.ndarray]) -> None:
    # oracle: the float64 means of the rows nearest to each row of the start
    case = find_case("kmeans", "k1000-d128")
    problem = case.inputs({"N": 3000, "K": 40, "D": 128, "I": 1}, 0)
    x = ordered(problem, draw(3000, 40))
    assert np.array_equal(x[draw(3000, 40)], problem.start.numpy())
    assert np.array_equal(np.sort(x, axis=0), np.sort(problem.x.numpy(), axis=0))
    found = (SUPERKMEANS if draw is superkmeans_draw else FAISS_SUPER).prepare(problem)()
    centroids = found.centroids if isinstance(found, Pruned) else found
    nearest = torch.cdist(problem.x.double(), problem.start.double()).argmin(1)
    means = torch.stack([problem.x[nearest == k].double().mean(0) for k in range(40)])
    # float32 sums of at most N rows, which are rotated and turned back
    budget = (3000 + 4 * 128) * U32 * float(problem.x.norm(dim=1).max())
    assert float((centroids.double() - means).norm(dim=1).max()) < budget


def test_assignments_of_a_peer_are_held_against_the_nearest() -> None:
    x, centroids = torch.randn(1000, 4), torch.randn(30, 4)
    right = vqkernels.nearest_code(x, centroids).indices
    wrong = right.clone()
    wrong[::10] = torch.cdist(x, centroids).argmax(1)[::10]
    shares = [wrong_share(Pruned(centroids, x, lambda labels=labels: labels)) for labels in (right, wrong)]  # type: ignore[misc]
    assert shares == [0.0, 0.1]
    problem = ClusterProblem(x, centroids, 1)
    verdicts = verify_kmeans(problem, {"ours": centroids, "peer": Pruned(centroids, x, lambda: wrong)}, OUR_NAME)
    assert str(verdicts["peer"]) == "+0.000%, 10.000% misassigned"
    assert str(verdicts["ours"]) == "+0.000%"
    run_ = _run()
    run_.cases[0].measurements[-1].verdict = verdicts["peer"]  # of the best peer of the first case
    told = table.markdown(run_, "r.json")
    assert "| torch, 20 ms (10.000% misassigned) |" in told
    assert told.count("misassigned") == 1


def test_a_case_whose_inputs_are_missing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    case = dataclasses.replace(find_case("kmeans", "k1000-d64").smoke(), needs="no_such_package")
    result = run.execute("kmeans", [case], DEVICE, OPTIONS, None, whole=True)
    assert result.cases == []
    assert not result.complete
    assert "package no_such_package is not installed" in capsys.readouterr().err


def test_every_case_is_a_benchmark_of_pytest() -> None:
    assert [case.id for case in PYTEST_CASES] == [f"{op}-{case.name}" for op in OPS for case in cases_on(op, "cpu")]


@pytest.mark.slow
def test_benchmarks_of_pytest_run(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ("--benchmark-only", "--smoke", "--threads=1", "--benchmark-max-time=0", "--benchmark-min-rounds=1")
    command = [sys.executable, "-m", "pytest", "bench", *options, f"--benchmark-json={result}", "-k", "k8192-d8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (measured,) = json.loads(result.read_text())["benchmarks"]
    assert measured["param"] == "nearest_code-k8192-d8"
    assert measured["extra_info"] == dict(find_case("nearest_code", "k8192-d8").smoke().sizes)
    assert measured["stats"]["rounds"] >= 1


def test_a_wrong_answer_is_no_benchmark_of_pytest() -> None:
    case = _injected(_one_off, ours=True)
    with pytest.raises(AssertionError, match="not exact, and not timed"):
        gated(case, list(case.implementations))
    right = find_case("nearest_code", case.name).smoke()
    assert callable(gated(right, [i for i in right.implementations if i.name == OURS]))


def test_quantiles() -> None:
    assert summarize([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == Timing(median=3.5, q20=2.0, q80=5.0, samples=6)


def test_memory_counts_what_a_lookup_allocates() -> None:
    case = dataclasses.replace(find_case("nearest_code", "k8192-d8"), sizes={"N": 64, "K": 20_000, "D": 8, "G": 1})
    setting = {"pairs": 1 << 24}
    pairs = 839 * 20_000  # rows of the buffer the setting asks for
    grown = peak_bytes(case, "torch addmm+argmin", setting, threads=1, seed=0)
    # the 64 rows that are used are touched, the rest of the buffer is not
    assert 4 * 64 * 20_000 <= grown < 4 * pairs


def _run(**changes: Any) -> record.Run:
    """A result made by hand: ours at 10 ms, one peer four times slower, one wrong, one half as fast."""
    right, wrong = Verdict(10, 10, 0, 0, 0, True), Verdict(100, 10, 5, 5, 50, False)
    work, ceiling = Work(pairs=200, flops=1600, bytes=500), Ceiling({"fp32": 3.2e5, "fp16": 3.2e6}, "FMA", 1e9)

    def measured(name: str, seconds: float | None, verdict: Verdict = right) -> record.Measurement:
        timing = None if seconds is None else Timing(seconds, 0.9 * seconds, 1.1 * seconds, 7)
        setting = {"backend": "cpu"} if name == OURS else {"pairs": 4}
        rates = record.rates(work, ceiling, "fp32", timing)
        return record.Measurement(name, "1.0", name == OURS, setting, "fp32", verdict, timing, rates, 2**20)

    def case(name: str, *more: record.Measurement) -> record.CaseRecord:
        sizes = {"N": 10, "K": 20, "D": 4, "G": 1}
        measurements = [measured(OURS, 0.01), measured("faiss", 0.04), *more]
        return record.CaseRecord(
            name, "made by hand", sizes, {"N": 99}, work, ceiling, measurements, {"absent": "no"}
        )

    environment = {
        "device": {"kind": "cpu"},
        "cpu": {"model": "Example(R) CPU 7 @ 2.00GHz", "family": "x", "cores": 2, "flags": []},
        "threads": 2,
        "thread_pools": [],
        "load_average": 0.0,
        "system": "Linux",
        "python": "3.11",
        "packages": {"vqkernels": "0.1", "faiss": "1.0"},
        "cuda": None,
        "build": {"isa": "avx512"},
        "isa": "auto",
        "commit": "abc",
        "dirty": False,
        "date": "2020-01-02T03:04:05+00:00",
        "seed": 0,
        "command": "python -m bench.run",
    }
    cases = [
        case("first", measured("cheat", 0.001, wrong), measured("torch", 0.02)),
        case("second", measured("torch", None)),
    ]
    return dataclasses.replace(record.Run(record.SCHEMA, "nearest_code", True, environment, 5, 1.0, cases), **changes)


def test_derived_figures() -> None:
    first, second = _run().cases
    assert first.best_peer is not None
    assert (first.best_peer.implementation, first.speedup) == ("torch", 2.0)  # the cheat is faster and does not count
    assert second.speedup == 4.0
    # 1600 operations at 3.2e5 per second are 5 ms, half of ours
    assert first.ours.rates is not None
    assert math.isclose(first.ours.rates.of_peak, 0.5)
    assert math.isclose(first.ours.rates.pairs, 2e4)
    # the same time in half precision, whose ceiling is ten times higher; without arithmetic the traffic binds
    timing = first.ours.timing
    assert record.rates(first.work, first.ceiling, "fp16", None) is None
    half, copied = (record.rates(w, first.ceiling, "fp16", timing) for w in (first.work, Work(0, 0, 5_000_000)))
    assert half is not None
    assert copied is not None
    assert math.isclose(half.of_peak, 0.05)
    assert math.isclose(copied.of_peak, 0.5)
    # 40 exponentials at 8000 per second are 5 ms; of none, or without a ceiling, there is no share
    work, ceiling = (dataclasses.replace(a, exps=b) for a, b in ((first.work, 40), (first.ceiling, 8e3)))
    assert first.ours.rates.of_exps is None
    busy, unknown = (record.rates(work, c, "fp32", timing) for c in (ceiling, first.ceiling))
    assert busy is not None
    assert busy.of_exps is not None
    assert math.isclose(busy.of_exps, 0.5)
    assert unknown is not None
    assert unknown.of_exps is None
    assert _run().file_name() == "example-7-2c_2020-01-02_abc.json"
    stamp = {"device": {"kind": "cpu"}, "cpu": {"model": "AMD EPYC 9B14 64-Core Processor", "cores": 4}}
    assert slug(stamp) == "amd-epyc-9b14-64-core-4c"
    assert slug({**stamp, "device": {"kind": "cuda", "name": "NVIDIA H200"}}) == "nvidia-h200"


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    record.save(_run(), path)
    assert record.load(path) == _run()
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(schema=0), f"schema {record.SCHEMA}, got 0"),
        (lambda data: data.pop("cases"), "expected the fields"),
        (lambda data: data["cases"][1].update(name=7), r"cases\[1\].name: expected .*str.*, got 7"),
        (lambda data: data["cases"][0]["measurements"][0]["timing"].pop("q20"), "timing: expected the fields"),
    ],
)
def test_a_damaged_result_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "result.json"
    record.save(_run(), path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        record.load(path)


def test_plot_and_readme_come_from_the_file(tmp_path: Path) -> None:
    result, page, charts = tmp_path / "r.json", tmp_path / "README.md", tmp_path / "assets"
    record.save(_run(), result)
    page.write_text("before\n<!-- bench:nearest_code:begin -->\nold\n<!-- bench:nearest_code:end -->\nafter\n")
    arguments = [str(result), "--out", str(charts), "--readme", str(page)]
    assert plot.main(arguments) == 0
    text = page.read_text()
    named = "**Example(R) CPU 7 @ 2.00GHz, 2 threads, avx512**"
    assert text.startswith(f"before\n<!-- bench:nearest_code:begin -->\n{named}\n\n| case |")
    assert text.endswith("<!-- bench:nearest_code:end -->\nafter\n")
    assert "old" not in text
    assert "**2.00x**" in text
    assert "[`r.json`](r.json)" in text
    assert "[chart](assets/bench_nearest_code_example-7-2c-avx512.svg)" in text
    svg, png = (charts / f"bench_nearest_code_example-7-2c-avx512.{kind}" for kind in ("svg", "png"))
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert all(word in svg.read_text() for word in ("first", "second", "faiss", "4.00x", "0.10x"))
    # drawn again, the same bytes: the repository does not change without a new result
    before = svg.read_bytes(), png.read_bytes(), text
    assert plot.main(arguments) == 0
    assert (svg.read_bytes(), png.read_bytes(), page.read_text()) == before


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:nearest_code:end --> <!-- bench:nearest_code:begin -->")
    with pytest.raises(ValueError, match="once each"):
        readme.write_between_markers(page, "bench:nearest_code", "table")
    page.write_text("nothing")
    record.save(_run(), result := tmp_path / "r.json")
    with pytest.raises(ValueError, match="expected <!-- bench:nearest_code:begin --> in one of them"):
        readme.write([page], [result])


def test_compare_names_ratios_and_differences() -> None:
    old, new = _run(), _run()
    new.environment = {**new.environment, "threads": 4, "commit": "def"}
    new.cases[1].sizes["N"] = 11
    ours = new.cases[0].measurements[0]
    ours.timing = Timing(0.005, 0.004, 0.006, 7)
    new.cases[0].measurements.pop(1)
    text = compare.compare(old, new)
    lines = [line.split() for line in text.splitlines()]
    assert "environment: threads 2 -> 4" in text
    assert "commit" not in text  # that is what one compares
    assert ["first", "vqkernels", "10", "ms", "5", "ms", "0.500", "faster"] in lines
    assert ["first", "torch", "20", "ms", "20", "ms", "1.000", "same"] in lines
    assert ["first", "faiss", "40", "ms", "missing", "-"] in lines
    assert "vqkernels: 1 faster, 0 same, 0 slower" in text
    assert "second N=10 K=20 D=4 G=1: only in OLD" in text
    with pytest.raises(ValueError, match="NEW"):
        compare.compare(old, _run(op="code_stats"))


def _sped_up(result: record.Run, name: str, factor: float) -> record.Run:
    for measurement in (m for case in result.cases for m in case.measurements if m.implementation == name):
        if (t := measurement.timing) is not None:
            measurement.timing = Timing(factor * t.median, factor * t.q20, factor * t.q80, t.samples)
    return result


@pytest.mark.parametrize(
    ("ours", "peers", "verdict"),
    [
        (0.5, 1.0, "faster"),
        (1.05, 1.0, "same"),  # within the noise
        (2.0, 1.0, "slower"),
        (2.0, 2.0, "same"),  # the machine is slower, for everyone
        (1.0, 2.0, "same"),  # better than the machine, but nothing measured is faster
    ],
)
def test_compare_tells_noise_and_drift(ours: float, peers: float, verdict: str) -> None:
    new = _sped_up(_sped_up(_sped_up(_run(), OURS, ours), "torch", peers), "faiss", peers)
    lines = [line.split() for line in compare.compare(_run(), new).splitlines()]
    assert [line[-1] for line in lines if line[:2] == ["first", OURS]] == [verdict]
    assert ["first", "drift", f"{peers:.3f}"] in lines


def test_a_gpu_result_has_its_own_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = _run(cases=_run().cases[:1])
    gpu.environment = {**gpu.environment, "device": {"kind": "cuda", "name": "Example 9", "driver_version": "5.0"}}
    results = tmp_path / "results"
    for number, result in enumerate((_run(), gpu)):
        record.save(result, results / "nearest_code" / f"{number}.json")
    record.save(_run(complete=False), results / "nearest_code" / "later.json")
    found = readme.newest(results)
    assert {key: path.name for key, path in found.items()} == {
        ("nearest_code", "example-7-2c-avx512"): "0.json",
        ("nearest_code", "example-9"): "1.json",
    }
    monkeypatch.setattr(readme, "newest", lambda: found)
    blocks = ("bench:nearest_code", "bench:nearest_code_cuda", "bench:gpu")
    page = tmp_path / "README.md"
    page.write_text("\n".join(f"<!-- {block}:begin -->\n<!-- {block}:end -->" for block in blocks))
    assert plot.main(["--out", str(tmp_path), "--readme", str(page)]) == 0
    text = page.read_text()
    # the cheat is the fastest, and its share of wrong codes stands beside it
    assert "| cheat, 0.10x, 50.00% |" in text
    assert "Example 9, driver 5.0" in text
    assert "- `nearest_code`: 2.00x to 2.00x the best peer" in text
    assert "GPU figures are not measured yet" not in text
    assert "`top_codes`" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "bench_nearest_code_example-7-2c-avx512.png",
        "bench_nearest_code_example-9.png",
    }


def test_every_processor_has_its_table_and_its_newest_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run()
    other = {**first.environment, "cpu": {**first.environment["cpu"], "model": "Other", "family": "y"}}
    learned = {**first.environment, "build": {"isa": "amx"}, "date": "2020-02-01T00:00:00+00:00", "commit": "def"}
    for number, stamp in enumerate((first.environment, other, learned)):
        record.save(_run(environment=stamp), tmp_path / "nearest_code" / f"{number}.json")
    found = readme.newest(tmp_path)
    # the first processor, newer and with more instructions
    assert {key[1]: path.name for key, path in found.items()} == {
        "example-7-2c-amx": "2.json",
        "other-2c-avx512": "1.json",
    }
    monkeypatch.setattr(readme, "newest", lambda: found)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench:{n}:begin --><!-- bench:{n}:end -->" for n in ("nearest_code", "summary")))
    readme.write([page], list(found.values()), tmp_path)
    text = page.read_text()
    assert text.count("| case |") == 2
    assert text.index("[`nearest_code/2.json`]") < text.index("[`nearest_code/1.json`]")
    first, second = "Example(R) CPU 7 @ 2.00GHz, 2 threads, amx", "Other, 2 threads, avx512"
    assert f"| op | {first} | vs vector-quantize-pytorch | {second} |" in text
    assert text.count("2.00x, **3.00x**, 4.00x (2 cases)") == 2
    assert "2 threads, amx: measured at def (2020-02-01); Other" in text


def test_of_a_makers_processors_the_last_measured_is_shown(tmp_path: Path) -> None:
    def stamp(maker: str, model: str, day: int, isa: str) -> dict[str, Any]:
        base = _run().environment
        cpu = {**base["cpu"], "model": maker, "family": f"{maker} {model}"}
        return {**base, "cpu": cpu, "build": {"isa": isa}, "date": f"2020-02-{day:02}T00:00:00+00:00"}

    stamps = {
        ("nearest_code", "intel"): stamp("Intel", "6 1 1", 1, "amx"),
        ("nearest_code", "older"): stamp("AMD", "25 17 1", 2, "avx512"),
        # measured before, and the other ops not again
        ("top_codes", "older"): stamp("AMD", "25 17 1", 2, "avx512"),
        ("nearest_code", "newer"): stamp("AMD", "25 1 1", 3, "avx2_int16"),
    }
    for (op, name), environment in stamps.items():
        record.save(_run(op=op, environment=environment), tmp_path / op / f"{name}.json")
    found = readme.newest(tmp_path)
    assert {key: path.name for key, path in found.items()} == {
        ("nearest_code", "amd-2c-avx2_int16"): "newer.json",
        ("nearest_code", "intel-2c-amx"): "intel.json",
    }
    lines = readme.summary(found).splitlines()
    assert lines[0].startswith("| op | AMD, 2 threads, avx2_int16 | vs")
    assert "| Intel, 2 threads, amx |" in lines[0]
    record.save(_run(op="kmeans", environment=stamps["nearest_code", "intel"]), tmp_path / "kmeans" / "intel.json")
    told = readme.summary(readme.newest(tmp_path)).splitlines()[3]
    assert told.startswith("| `kmeans` | not measured |  | 2.00x, **3.00x**")


newest = functools.cache(readme.newest)


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_the_figures_of_the_documents_are_those_of_the_results(document: Path) -> None:
    text, held = document.read_text(), 0
    for name, told in readme.blocks(list(newest().values()), readme.CHARTS, document.parent).items():
        if f"<!-- {name}:begin -->" in text:
            assert readme.between_markers(text, name) == told, "run `python -m bench.plot --readme`"
            held += 1
    assert held >= 2


def test_a_peer_that_is_not_installed_is_reported() -> None:
    absent = Implementation("absent", "no_such_package", lambda problem: lambda: None)
    case = find_case("nearest_code", "k8192-d8").smoke()
    ours = tuple(i for i in case.implementations if i.name == OURS)
    measured = run.run_case(dataclasses.replace(case, implementations=(*ours, absent)), DEVICE, OPTIONS)
    assert measured.skipped == {"absent": "package no_such_package is not installed"}
    assert "absent: not run, package no_such_package is not installed" in table.case_table(measured)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--op", "nearest_code", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in OPS["nearest_code"])
