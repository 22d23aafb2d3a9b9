"""The plan of a GPU session, rehearsed on the processor: every step runs, and none takes the others with it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import gpu_suite, readme, run
from bench.case import Implementation
from bench.device import Rehearsal, moved
from bench.gpu import kernels, tools, tuned, workout
from bench.gpu.coarse import ARITHMETICS, undecided
from bench.gpu.context import Context, Unavailable
from bench.gpu.probes import usage
from bench.gpu.steps import CASES, REQUIRED, STEPS, Step, cases_of
from bench.gpu_suite import run_step
from bench.multilevel_nearest_code.problem import MultilevelProblem
from bench.ours import backend_obstacle, made_of, op_obstacle
from bench.registry import OPS, cases_on, find_case
from vqkernels._core import backend
from vqkernels._core.backend import registered_backends, registered_ops
from vqkernels.ops.nearest_code import triton as lookup
from vqkernels.testing.triton_report import KernelBuild, KernelReport, compile_reports

ROOT = Path(__file__).parents[1]


def suite(out: Path, *arguments: str) -> dict[str, Any]:
    """What a rehearsal of the suite leaves behind."""
    code = gpu_suite.main(["--smoke", "--out", str(out), *arguments])
    found: dict[str, Any] = json.loads((out / "suite.json").read_text())
    assert code == 0, {name: step.get("reason") for name, step in found["steps"].items()}
    return found


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.slow
def test_the_whole_plan_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = suite(tmp_path / "first", "--minutes", "60")
    state = {name: step["state"] for name, step in found["steps"].items()}
    assert list(state) == [step.name for step in STEPS]
    # in the interpreter everything runs; only the profiler needs a device
    assert {name: state[name] for name in state if state[name] != "done"} == {"counters": "not available"}
    assert found["steps"]["counters"]["reason"]
    for op in OPS:
        ((name, measured),) = (i for i in found["steps"][f"all_{op}"]["findings"].items() if i[0] != "cases")
        # what can be asked for by name is measured by its name, too
        offered = [i.name for i in find_case(op, name).on("cuda").implementations]
        assert {"vqkernels", *(i for i in offered if i == "vqkernels triton")} <= set(measured["seconds"])
    assert found["steps"]["sanitizers"]["findings"]["triton alone"]["exit code"] == 0
    assert all(part["share of the bound"] < 1 for part in found["steps"]["bounds"]["findings"].values())
    for probe in ("tiles", "split"):
        timed = [finding for finding in found["steps"][probe]["findings"].values() if "not available" not in finding]
        assert timed
        assert all(finding["same indices"] for finding in timed)
    rates = found["steps"]["rates"]["findings"]
    assert all(rates[name]["per second"] > 0 for name in ("integer minimum", "float minimum", "exponential"))
    assert all(f["within rounding"] for name, f in found["steps"]["updates"]["findings"].items() if "torch" in name)
    assert found["environment"]["device"] == {"kind": "cuda", "rehearsal": "on the processor"}
    # at most eight files come back from a machine that is lent
    assert len([path for path in (tmp_path / "first").iterdir() if "-all" not in path.name]) <= 8
    # a second run has nothing left to do but what could not be done, and what a bare machine needs
    capsys.readouterr()
    again = suite(tmp_path / "second", "--rerun", str(tmp_path / "first" / "suite.json"))
    assert list(again["steps"]) == ["build", "counters"]


def _outcomes(monkeypatch: pytest.MonkeyPatch, **states: str) -> list[tuple[str, float]]:
    """Have every step end at once, as told or done; what ran, and the seconds it was given."""
    ran: list[tuple[str, float]] = []

    def ends(step: Step, out: Path, limit: float, smoke: bool) -> dict[str, Any]:
        ran.append((step.name, limit))
        return {"state": states.get(step.name, "done"), "seconds": 0.0, "findings": {}}

    monkeypatch.setattr(gpu_suite, "run_step", ends)
    monkeypatch.setattr(gpu_suite, "Cuda", lambda: Rehearsal(threads=1))
    monkeypatch.setattr(gpu_suite, "_look_for_peers", lambda: None)
    return ran


def test_a_rerun_takes_up_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _outcomes(monkeypatch, tests="failed", lookup="cut off", counters="not available")
    first, second = tmp_path / "first", tmp_path / "second"
    assert gpu_suite.main(["--out", str(first)]) == 1
    assert [name for name, _ in ran] == [step.name for step in STEPS]
    ledger = json.loads((first / "suite.json").read_text())
    for step in STEPS:
        assert 0 < ledger["steps"][step.name]["limit"] <= step.seconds
        assert ledger["steps"][step.name]["began"] >= 0
    ran = _outcomes(monkeypatch)
    assert gpu_suite.main(["--out", str(second), "--rerun", str(first / "suite.json")]) == 0
    # the machine is another one and bare
    assert [name for name, _ in ran] == ["build", "tests", "lookup", "counters"]
    rerun = json.loads((second / "suite.json").read_text())
    assert rerun["minutes"] <= 4
    assert rerun["completes"]["commit"] == ledger["environment"]["commit"]
    # nothing of the first is overwritten, and what is no ledger is none
    (tmp_path / "list.json").write_text("[]")
    for arguments in (["--out", str(first)], ["--out", str(second / "more"), "--rerun", str(tmp_path / "list.json")]):
        with pytest.raises(SystemExit):
            gpu_suite.main(arguments)
    assert json.loads((first / "suite.json").read_text()) == ledger


def test_no_step_begins_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = _outcomes(monkeypatch)
    assert gpu_suite.main(["--out", str(tmp_path / "out"), "--minutes", "1.8", "--only", "tests", "rates"]) == 0
    assert [name for name, _ in ran] == ["build", "tests", "rates"]
    assert all(limit <= 108 for _, limit in ran)
    assert gpu_suite.main(["--out", str(tmp_path / "none"), "--minutes", "0.1"]) == 0
    found = json.loads((tmp_path / "none" / "suite.json").read_text())
    assert {step["state"] for step in found["steps"].values()} == {"no time left"}


def test_what_a_session_must_have_fits_into_it() -> None:
    assert STEPS[: len(REQUIRED)] == REQUIRED
    assert sum(step.seconds for step in REQUIRED) <= 8 * 60
    measured = [case for op, names in CASES.items() for case in cases_of(op, names)]
    assert [case.name for case in measured] == [name for names in CASES.values() for name in names]
    for case in measured:
        # at the sizes of the papers, against all that the plan names
        assert dict(case.sizes) == {**case.sizes, **case.true_sizes}
        rivals = {i.name for i in case.implementations}
        wanted = {"torch tuned", "flash-kmeans fp32", "faiss-gpu"}
        assert rivals >= ({"vector-quantize-pytorch"} if case.op == "train_step" else wanted) | {"vqkernels triton"}


def test_the_plan_names_the_steps_and_their_shares() -> None:
    text = (ROOT / "bench" / "GPU_PLAN.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert rows == [(step.name, f"{step.seconds:.0f}") for step in REQUIRED]
    others = [step.name for step in STEPS[len(REQUIRED) :] if not step.name.startswith("all_")]
    places = [text.index(f"`{name}`") for name in others]
    assert places == sorted(places)


@pytest.mark.slow
def test_the_sample_leaves_out_no_op_and_no_backend() -> None:
    """Oracle: the registry. What would be selected where there is a GPU, and every test that there is for it."""
    command = [sys.executable, "tests/tools/collect_on_gpu.py"]
    options: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}

    def collected(*arguments: str) -> list[tuple[str, str, list[str]]]:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stdout
        return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]  # type: ignore[misc]

    found = collected(*tools.TESTS)
    whole = collected(*(argument for argument in tools.TESTS if argument not in ("--sample", str(tools.SAMPLE))))
    assert len(found) < len(whole) / 2
    served = {(op, name) for op in registered_ops() for name in registered_backends(op) if name in workout.BACKENDS}
    assert {(op, name) for _, name, ops in found for op in ops} >= served

    def tests(selected: list[tuple[str, str, list[str]]]) -> set[tuple[str, str]]:
        return {(test.partition("[")[0], name) for test, name, _ in selected}

    assert tests(found) == tests(whole)


def test_tiles_become_rows_of_the_launch_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: times by hand. 32, 80 and 272 columns; what is wrong or failed is not chosen."""
    times = {
        "D=8 a": {"shape": [128, 256, 4, 3], "same indices": True, "timing": {"median": 2.0}},
        "D=8 b": {"shape": [64, 128, 4, 3], "same indices": True, "timing": {"median": 3.0}},
        "D=8 c": {"shape": [256, 128, 4, 3], "same indices": False, "timing": {"median": 1.0}},
        "D=64 a": {"shape": [128, 256, 4, 3], "same indices": True, "timing": {"median": 2.0}},
        "D=256 a": {"shape": [128, 256, 4, 3], "failed": "out of resources"},
        "D=256 b": {"shape": [64, 128, 8, 3], "same indices": True, "timing": {"median": 9.0}},
        "BLOCK_N = 192": {"not available": "tiles of Triton are powers of two"},
    }
    environment = {"date": "2031-01-02T03:04:05+00:00", "commit": "abc1234", "dirty": False}
    found = {"environment": environment, "steps": {"tiles": {"findings": times}}}
    first, last = tuned.rows(found)
    assert (first.columns, first.config[:4]) == (80, (128, 256, 4, 3))
    assert (last.columns, last.config[:4]) == (lookup.WIDEST, (64, 128, 8, 3))
    assert first.source == last.source == "nearest_code/tiles/2031-01-02_abc1234.json"
    (tmp_path / "suite.json").write_text(json.dumps(found))
    assert tuned.main([str(tmp_path / "suite.json")]) == 0
    names = {"Tuned": lookup.Tuned, "Config": lookup.Config, "WIDEST": lookup.WIDEST}
    assert eval(f"({capsys.readouterr().out})", names) == (first, last)
    with pytest.raises(ValueError, match="tiles"):
        tuned.rows({"steps": {}})


def _fails(context: Context) -> None:
    context.record("before", 1)
    raise ValueError("as planned")


def _hangs(context: Context) -> None:
    context.record("before", 1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (context.out / "part").write_text(str(child.pid))
    (context.out / "part").rename(context.out / "child")
    time.sleep(600)


def _dies(context: Context) -> None:
    context.record("before", 1)
    os._exit(3)


def _lacks(context: Context) -> None:
    context.record("before", 1)
    raise Unavailable("no such op")


@pytest.mark.parametrize(
    ("function", "state", "reason"),
    [
        (_fails, "failed", "ValueError: as planned"),
        (_dies, "failed", "the process ended with 3"),
        (_lacks, "not available", "no such op"),
    ],
)
def test_a_step_takes_nothing_with_it(function: Any, state: str, reason: str, tmp_path: Path) -> None:
    outcome = run_step(Step("planned", "a step of the test", 600, function), tmp_path, 600.0, True)
    assert (outcome["state"], outcome["reason"]) == (state, reason)
    assert outcome["findings"] == {"before": 1}  # what was found before is kept
    if state == "failed" and "ended" not in reason:
        assert "as planned" in (tmp_path / "suite.log").read_text()


def test_a_step_that_hangs_takes_nothing_with_it(tmp_path: Path) -> None:
    started = tmp_path / "child"
    # until it was given the time to begin, whatever else the machine does
    for limit in (1.0, 5.0, 25.0, 125.0, 625.0):
        outcome = run_step(Step("planned", "a step of the test", 600, _hangs), tmp_path, limit, True)
        assert (outcome["state"], outcome["reason"]) == ("cut off", f"at {limit:.0f} s")
        if started.exists():
            break
    assert outcome["findings"] == {"before": 1}
    # what the step had started is gone with it
    child = Path("/proc") / started.read_text() / "stat"
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_step_cut_off_before_it_has_begun_ends(tmp_path: Path) -> None:
    outcome = run_step(Step("late", "a step of the test", 600, _hangs), tmp_path, 0.0, True)
    assert (outcome["state"], outcome["findings"]) == ("cut off", {})


def test_a_gpu_gets_the_true_sizes() -> None:
    for case in (case for cases in OPS.values() for case in cases):
        full = case.on("cuda")
        assert dict(full.sizes) == {**case.sizes, **case.true_sizes, **case.cuda_sizes}
        assert dict(full.true_sizes) == ({} if not case.cuda_sizes else dict(case.true_sizes))
        assert dict(case.on("cpu").sizes) == dict(case.sizes)
        assert case.devices
        for device in case.devices:
            assert case.name in [placed.name for placed in cases_on(case.op, device)]
            able = case.on(device).implementations
            assert able
            assert all(device in i.devices for i in able)


def test_obstacles_have_reasons() -> None:
    assert op_obstacle("no_such_op") == "vqkernels.no_such_op does not exist yet"
    assert backend_obstacle("no_such_op", "triton") == op_obstacle("no_such_op")
    assert backend_obstacle("nearest_code", "abacus") == "vqkernels.nearest_code has no backend 'abacus' yet"
    assert backend_obstacle("nearest_code", "reference") == ""
    if not torch.cuda.is_available():
        peers = [
            i for i in OPS["nearest_code"][0].on("cuda").implementations if not i.ours and "cpu" not in i.devices
        ]
        assert peers
        assert all(peer.missing("cuda") for peer in peers)


@pytest.mark.parametrize("op", OPS)
def test_obstacles_are_those_of_the_ops_that_run(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of several ops says which; oracle: the backends that a call really asks for."""
    case = next(case for case in cases_on(op, "cpu") if not case.missing()).smoke()
    problem = case.inputs(case.sizes, 0)
    asked: set[str] = set()
    module = backend._module
    monkeypatch.setattr(backend, "_module", lambda op, name: (asked.add(op), module(op, name))[1])
    next(i for i in case.implementations if i.ours).prepare(problem)()
    assert asked == set(made_of(op))


def test_a_peer_runs_where_its_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=139 << 30))
    obstacles = {
        case.name: next(i for i in case.implementations if i.name == "fast-pytorch-kmeans").obstacle("cuda")
        for case in cases_on("kmeans", "cuda")
        if not case.name.endswith("disk")
    }
    assert obstacles.pop("k100000-d256") == "its K x N masks need 500 GB of 149 GB"
    assert not any(obstacles.values())


def test_a_peer_that_dies_is_reported_and_the_others_measured() -> None:
    def dies(problem: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    case = OPS["nearest_code"][0].on("cpu").smoke()
    broken = Implementation("broken", "torch", dies)
    case = dataclasses.replace(case, implementations=(case.implementations[0], broken))
    options = run.Options(threads=1, rounds=1, min_seconds=0.0, seed=0, ceiling_seconds=0.01)
    measured = run.run_case(case, Rehearsal(threads=1, settle_seconds=0.0), options)
    assert measured.skipped == {"broken": "failed: RuntimeError: out of"}
    assert measured.ours.timing is not None


def test_a_problem_moves_whole() -> None:
    problem = MultilevelProblem((torch.zeros(2), torch.zeros(3)), (torch.zeros(4),), (0.5, 1.0))
    placed = moved(problem, torch.device("meta"))
    assert isinstance(placed, MultilevelProblem)
    assert all(tensor.is_meta for tensors in placed[:2] for tensor in tensors)
    assert placed.weights == (0.5, 1.0)


def test_what_a_coarse_pass_leaves_undecided() -> None:
    # the scores of codes 2^-5 apart differ by 2^-11: nothing to 11 bits of mantissa, much to 22
    codebook = torch.tensor([[-1.0], [1.0], [1.0 + 2.0**-5], [-1.0 - 2.0**-5]])
    x = torch.tensor([[1.0], [1.0 + 2.0**-5], [-1.0], [0.5]]).repeat(64, 1)
    found = {name: undecided(x, codebook, arithmetic) for name, arithmetic in ARITHMETICS.items()}
    assert found["bf16"]["more than one candidate"] >= 0.75
    assert found["fp16 pairs"] == {"wrong": 0.0, "more than one candidate": 0.0, "candidates": 1.0}
    # finer arithmetic never leaves more, and the true code is always a candidate
    left = [found[name]["candidates"] for name in ("bf16", "fp16", "fp16 pairs")]
    assert left == sorted(left, reverse=True)
    assert found["tf32"]["candidates"] == found["fp16"]["candidates"]


@pytest.mark.slow
def test_the_rate_kernels_hold_what_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # oracle: the machine code, compiled for sm_90; per element and round four multiply-adds, or none
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sizes = {"BLOCK": 1024}
    signature = {"out": "*fp32", "rounds": "i32", "step": "fp32"}
    integer, floating, exponential = compile_reports(
        KernelBuild("bench.gpu.kernels:min_rate", signature, {**sizes, "INTEGER": True}),
        KernelBuild("bench.gpu.kernels:min_rate", signature, {**sizes, "INTEGER": False}),
        KernelBuild("bench.gpu.kernels:exp_rate", signature, sizes),
    )

    def counts(report: KernelReport, inside: str) -> dict[str, int]:
        loop = report.loop_with(inside)
        assert report.spill_bytes == 0
        return {name: report.count(rf"\b{name}\b", loop) for name in ("VIMNMX3", "VIMNMX", "FMNMX", "FFMA", "MUFU")}

    found = counts(integer, "VIMNMX3")
    rounds = found["FFMA"] // 4
    assert rounds > 0
    assert (found["VIMNMX3"] * 2, found["VIMNMX"], found["FMNMX"]) == (kernels.MIN_INPUTS * rounds, 0, 0)
    found = counts(floating, "FMNMX")
    assert (found["FMNMX"], found["VIMNMX"], found["VIMNMX3"]) == (kernels.MIN_INPUTS * found["FFMA"] // 4, 0, 0)
    # 1024 elements are eight per thread
    assert counts(exponential, "MUFU")["MUFU"] % (8 * kernels.EXPONENTIALS) == 0


def test_usage_follows_its_law() -> None:
    n, k = 200_000, 50
    counts = torch.bincount(usage("zipf", n, k), minlength=k).sort(descending=True).values.double()
    expected = n / torch.arange(1, k + 1) / (1 / torch.arange(1, k + 1)).sum()
    # five standard deviations of a count
    assert bool(((counts - expected).abs() <= 5 * expected.sqrt()).all())
    assert usage("one code", 3, k).tolist() == [25, 25, 25]


def test_the_readme_says_what_was_measured_on_a_gpu() -> None:
    told = readme.between_markers((ROOT / "README.md").read_text(), readme.GPU_BLOCK)
    assert told == readme.gpu_status(), "run `python -m bench.plot --readme`"
    assert "not measured yet" in readme.gpu_status({})


@pytest.mark.gpu
@pytest.mark.parametrize("op", [op for op in OPS if not op_obstacle(op)])
def test_every_case_runs_on_a_gpu(op: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert run.main(["--op", op, "--device", "cuda", "--smoke", "--json", str(path)]) == 0
