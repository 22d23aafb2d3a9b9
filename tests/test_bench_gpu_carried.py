"""Kernels compiled on one machine, found by Triton on another. Oracle: Triton, which tells whether it compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import carried
from bench.gpu.context import Unavailable
from bench.machine import ROOT

# one of a pair of machines: argv is the library of its Triton ("own" or the path of another), sources of Triton that
# differ (or ""), the archive, and what to do with it before and after the launches of some ops
MACHINE = """
import hashlib, json, sys
from pathlib import Path
import torch
from triton.runtime import cache
from bench.gpu import carried, preflight, workout
from bench.gpu.context import Unavailable

library, sources, archive, action, *ops = sys.argv[1:]
if library != "own":
    loaded = sys.modules["triton._C.libtriton"]
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in (loaded.__file__, library)]
    loaded.__file__ = library
    key = cache.triton_key().replace(*digests) + sources
    cache.triton_key = lambda: key
told = {}
if action == "unpack":
    try:
        told["unpacked"] = [carried.unpack(Path(archive)) for _ in range(2)]
    except Unavailable as reason:
        told["unavailable"] = str(reason)
counted = carried.counting()
with preflight.compiling(90) as compiled, carried.keys() as parts:
    for op, _, task in workout.tasks():
        if op in ops:
            torch.manual_seed(0)
            task("triton")
kernels = [kernel for found in compiled.values() for kernel in found.values()]
if action == "pack":
    carried.pack(Path(archive), kernels, parts)
print(json.dumps({**told, **counted, "code": sorted(hashlib.sha256(k.kernel).hexdigest() for k in kernels)}))
"""


def machine(cache: Path, *arguments: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MACHINE, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_what_is_carried_is_not_compiled_again(tmp_path: Path) -> None:
    """Through the launches themselves; the other machine's Triton is built for another Python."""
    archive, library = tmp_path / "kernels.zip", tmp_path / "libtriton.so"
    library.write_bytes(b"of another Python")
    packed = machine(tmp_path / "here", "own", "", str(archive), "pack", "ema_update_", "code_range")
    count = packed["compiled"]
    assert (packed["found"], count > 2) == (0, True)
    found = machine(tmp_path / "there", str(library), "", str(archive), "unpack", "ema_update_", "code_range")
    assert found["unpacked"] == [{"kernels": count, "new": count}, {"kernels": count, "new": 0}]
    assert (found["found"], found["compiled"]) == (count, 0)
    assert found["code"] == packed["code"]
    # what was not carried is compiled, as ever
    more = machine(tmp_path / "there", str(library), "", str(archive), "unpack", "code_range", "gather_codes")
    assert min(more["found"], more["compiled"]) > 0
    # another compiler gets nothing, and without a library of its own even the same one has other keys
    other = machine(tmp_path / "other", str(library), "-changed", str(archive), "unpack", "code_range")
    assert "another Triton" in other["unavailable"]
    assert other["found"] == 0


def test_nothing_carried_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no kernels\.zip"):
        carried.unpack(tmp_path / "kernels.zip")
