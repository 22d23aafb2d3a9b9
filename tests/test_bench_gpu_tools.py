"""What programs around the GPU print, read back. Oracle: samples of their formats, with the numbers put in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.gpu import tools
from bench.gpu.context import Context, Unavailable
from bench.gpu.workload import WORKLOADS
from bench.machine import ROOT

PROFILE = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
a line of the program, with "quotes", and
==PROF== Profiling "scan_codes" - 0: 0%....50%....100% - 12 passes
==PROF== Disconnected from process 4242
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","launch__registers_per_thread",\
"lts__throughput.avg.pct_of_peak_sustained_elapsed","sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",\
"sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active","sm__pipe_alu_cycles_active.avg.pct_of_peak_sustained_active",\
"sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active","sm__throughput.avg.pct_of_peak_sustained_elapsed",\
"sm__warps_active.avg.pct_of_peak_sustained_active","smsp__issue_active.avg.pct_of_peak_sustained_active"
"","","","","","","","","","","","%","ns","register/thread","%","%","%","%","%","%","%","%"
"0","4242","python3.12","127.0.0.1","scan_codes","1","7","(128, 1, 1)","(512, 1, 1)","0","9.0",\
"1.50","1,234,567","168","40.25","61.00","0.10","63.5","55.0","64.0","24.9","48.0"
"1","4242","python3.12","127.0.0.1","void vqk::cuda::decide(Lookup, Workspace)","1","7","(128, 1, 1)","(9, 1, 1)",\
"0","9.0","80.00","2,000","64","30.0","1.0","","2.0","0.0","12.0","50.0","3.0"
"""


def test_counters_name_what_limits_a_kernel() -> None:
    scan, decide = (tools.limits(row) for row in tools.profiled(PROFILE))
    assert (scan["kernel"], decide["kernel"]) == ("scan_codes", "void vqk::cuda::decide")
    assert scan["seconds"] == pytest.approx(1.234567e-3)
    assert (scan["registers"], scan["occupancy"]) == (168, 24.9)
    # of two counters of one pipe the larger; the multiprocessor as a whole is no limit with a name
    assert scan["busy"] == {
        **{"multiprocessor": 64.0, "pipe alu": 63.5, "pipe tensor": 55.0, "issue": 48.0, "L2": 40.25},
        **{"DRAM": 1.5, "pipe xu": 0.1},
    }
    assert (scan["bound by"], decide["bound by"]) == ("pipe alu", "DRAM")


@pytest.mark.parametrize("output", ["", "==ERROR== ERR_NVGPUCTRPERM - The user has no permission\n", '"ID","a"\n'])
def test_no_counters_no_rows(output: str) -> None:
    assert tools.profiled(output) == []


@pytest.mark.parametrize(
    ("output", "errors", "first"),
    [
        ("========= COMPUTE-SANITIZER\nours\n========= ERROR SUMMARY: 0 errors\n", 0, ""),
        (
            "========= COMPUTE-SANITIZER\n========= Invalid __global__ write of size 4 bytes\n=========     at scan\n"
            "========= ERROR SUMMARY: 3 errors\n",
            3,
            "Invalid __global__ write of size 4 bytes",
        ),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n", 2, ""),
    ],
)
def test_a_sanitizer_is_understood(output: str, errors: int, first: str) -> None:
    found = tools.sanitizer_summary(output)
    assert (found["errors"], found["first"]) == (errors, first)


def test_a_sanitizer_that_did_not_run_is_no_success() -> None:
    assert tools.sanitizer_summary("nothing")["not available"]
    refused = "========= COMPUTE-SANITIZER\n========= Error: Device not supported\n"
    assert tools.sanitizer_summary(refused) == {"not available": "Error: Device not supported"}


def on_the_path(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def context(folder: Path) -> Context:
    return Context(folder, folder / "running.json", 60.0, smoke=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA, whose own tools are then called")
def test_the_profiler_is_called_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Context, "require_gpu_backend", lambda self, op: ["triton"])
    (tmp_path / "sample").write_text(PROFILE)
    script = f"import sys; print(*sys.argv[1:]); print(open({str(tmp_path / 'sample')!r}).read())"
    on_the_path(tmp_path, "ncu", script, monkeypatch)
    found = context(tmp_path)
    tools.counters(found)
    assert list(found.findings) == list(WORKLOADS)
    assert all(finding["kernels"][0]["bound by"] == "pipe alu" for finding in found.findings.values())
    (called,) = (line for line in capsys.readouterr().out.splitlines() if line.endswith("workload entropy D=8"))
    assert "--clock-control none" in called  # the clocks stay as they are
    # counters that are refused are refused for good, with the reason
    on_the_path(tmp_path, "ncu", "print('==ERROR== ERR_NVGPUCTRPERM - no permission')", monkeypatch)
    with pytest.raises(Unavailable, match="ERR_NVGPUCTRPERM - no permission"):
        tools.counters(context(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has CUDA, whose own tools are then called")
def test_what_a_sanitizer_finds_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "require_gpu_backend", lambda self, op: ["triton"])
    ended = tools.run
    monkeypatch.setattr(
        tools,
        "run",
        # the workout itself is rehearsed elsewhere
        lambda context, command, *rest, **more: (
            tools.Ended(0, "fine") if command[0] == sys.executable else ended(context, command, *rest, **more)
        ),
    )
    script = "import sys; print('========= ERROR SUMMARY:', int('racecheck' in sys.argv), 'errors')"
    on_the_path(tmp_path, "compute-sanitizer", script, monkeypatch)
    found = context(tmp_path)
    with pytest.raises(RuntimeError, match="triton racecheck: 1"):
        tools.sanitizers(found)
    errors = {name: finding["errors"] for name, finding in found.findings.items() if "errors" in finding}
    assert errors == {f"triton {tool}": int(tool == "racecheck") for tool in tools.SANITIZERS}


def test_the_build_does_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled kernels, an extension that fails: peers are installed all the same, and what is usable is told."""
    ran: dict[str, dict[str, str]] = {}

    def run(context: Context, command: list[str], seconds: float, **environment: str) -> tools.Ended:
        assert 0 < seconds < 60
        ran[" ".join(command[1:])] = environment
        return tools.Ended(1, "nvcc: no such thing\n") if "setup.py" in command else tools.Ended(0, "fine\n")

    monkeypatch.setattr(tools, "run", run)
    monkeypatch.setattr(tools.carried, "FOLDER", tmp_path)
    monkeypatch.setattr(tools.carried, "KERNELS", tmp_path / "kernels.zip")
    (tmp_path / "peer-1.0-py3-none-any.whl").touch()
    found = Context(tmp_path, tmp_path / "running.json", 60.0)
    with pytest.raises(RuntimeError, match="extension: nvcc: no such thing"):
        tools.build(found)
    install, extension, usable = ran
    assert "--no-index" in install
    assert install.endswith(f"--target {tools.carried.PEERS} {tmp_path / 'peer-1.0-py3-none-any.whl'}")
    assert "build_ext --inplace" in extension
    assert ran[extension] == {"VQKERNELS_BUILD": "cuda", "VQKERNELS_CUDA_ARCHS": "90"}
    assert usable == "-m vqkernels.info"
    assert {name: finding.get("exit code") for name, finding in found.findings.items()} == {
        **{"compiled kernels": None, "peers": 0, "extension": 1},
        "what is usable": 0,
    }


def test_a_program_that_takes_too_long_leaves_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('so far', flush=True); time.sleep(600)"]
    # until it was given the time to say something, whatever else the machine does
    for limit in (0.5, 2.0, 10.0, 50.0, 250.0):
        code, said = tools.run(context(tmp_path), command, limit)
        if said:
            break
    assert (code, said) == (None, "so far\n")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_launch_compiles(capability: int) -> None:
    """Oracle: Triton's own launcher and compiler, up to where a device would be needed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gpu.preflight", "--capability", str(capability)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kernels"]["vqkernels.ops.nearest_code.triton_search:scan_codes"]["variants"] > 1
    assert told["kernels"]["bench.gpu.kernels:lookup_scores"]["variants"] > 1
    assert told["enqueue"] > 0
