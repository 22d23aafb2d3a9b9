"""On which threads the C++ kernels run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from needs import needs_extension

from vqkernels._core.extension import build_info

pytestmark = needs_extension
openmp = pytest.mark.skipif(
    not (sys.platform == "linux" and "OpenMP" in torch.__config__.parallel_info()),
    reason="the machine's torch has no OpenMP",
)

# after an operation of torch and a lookup the process has the threads that it had after the operation
COUNTED = """
import os, threading, torch, vqkernels
torch.set_num_threads(3)
torch.rand(1 << 21).exp_()
x, codebook = torch.rand(4096, 40), torch.rand(3000, 40)
before, seen, done = set(os.listdir("/proc/self/task")), set(), threading.Event()
def watch():
    while not done.is_set():
        seen.update(os.listdir("/proc/self/task"))
watcher = threading.Thread(target=watch)
watcher.start()
for _ in range(20):
    vqkernels.nearest_code(x, codebook, backend="cpu")
done.set()
watcher.join()
new = seen - before - {str(watcher.native_id)}
assert not new, new
"""

FORKED = """
import os, torch, vqkernels
from vqkernels._core.extension import build_info
torch.set_num_threads(2)
x, codebook = torch.rand(2000, 40), torch.rand(3000, 40)
truth = vqkernels.nearest_code(x, codebook, backend="cpu").indices.tolist()
child = os.fork()
if child == 0:
    found = vqkernels.nearest_code(x, codebook, backend="cpu").indices.tolist()
    os._exit(0 if found == truth and build_info()["threads"] == "of each call" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@openmp
def test_kernels_run_on_the_threads_of_torch() -> None:
    assert build_info()["threads"] == "of torch"
    run(COUNTED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the machine cannot fork")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    run(FORKED)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_threads_whose_first_call_it_is_share_a_module(backend: str) -> None:
    """One of them imports it, and the others must not take what is there of it so far."""
    run(f"""
import sys, threading, torch, vqkernels
sys.setswitchinterval(1e-6)
x, codebook = torch.rand(1500, 24), torch.rand(2000, 24)
start, failed = threading.Barrier(8), []
def work():
    start.wait()
    try:
        vqkernels.nearest_code(x, codebook, backend="{backend}")
    except AttributeError as error:
        failed.append(error)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
""")
