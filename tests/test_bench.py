"""The benchmark: every case runs and passes its gate, the gate catches what it must, results survive the file.

Nothing here asserts a time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_results import made_run

import vqkernels
from bench import readme, record, run, table
from bench.case import Call, Implementation, OpCase, Verdict
from bench.device import Cpu
from bench.gate import U32, SquaredL2, checked_rows
from bench.kmeans.cases import verify as verify_kmeans
from bench.kmeans.cases import wrong_share
from bench.kmeans.problem import ClusterProblem
from bench.kmeans.pruning import FAISS_SUPER, SUPERKMEANS, Pruned, faiss_draw, ordered, superkmeans_draw
from bench.machine import ROOT
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
    run_ = made_run()
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
    # a worker of pytest-xdist would not be let time anything
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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
    # the 64 rows that are used are touched, the rest of the buffer is not; the system counts a process's pages on
    # each processor and gathers them late, and some of the rows' pages may have been there before
    assert 4 * 48 * 20_000 <= grown < 4 * pairs


newest = functools.cache(readme.newest)


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
