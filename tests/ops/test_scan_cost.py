"""What ways to scan cost is measured by whoever asks first: always a number that lookups can count with."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from needs import needs_extension
from variants import BYTES, INTEGERS, processor_isas

from vqkernels._core.env import ISA_CODES
from vqkernels._core.extension import extension

pytestmark = needs_extension
AT_ONCE = """
from threading import Thread
import torch
from vqkernels import nearest_code
x, codes = torch.randn(300, 16), torch.randn(500, 16)
expected = nearest_code(x, codes, backend="reference").indices
found = []
threads = [Thread(target=lambda: found.append(nearest_code(x, codes, backend="cpu").indices)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 4 and all(torch.equal(indices, expected) for indices in found)
"""


@pytest.mark.parametrize("isa", processor_isas())
def test_every_way_has_a_cost_that_stays(isa: str) -> None:
    there = {
        "floats": True,
        "words": isa in INTEGERS and isa not in ("neon_int8", "amx_int8"),
        "bytes": isa in BYTES,
        "tiles": "amx" in isa,
    }
    for unit, has in there.items():
        costs = [extension().scan_cost(ISA_CODES[isa], unit, d) for d in (1, 32, 1000)]
        assert all(math.isfinite(cost) for cost in costs)
        assert (0 < costs[0] <= costs[1] < costs[2]) if has else costs == [0, 0, 0]
        assert costs == [extension().scan_cost(ISA_CODES[isa], unit, d) for d in (1, 32, 1000)]


def test_a_unit_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="unit: expected floats, words, bytes or tiles, got nibbles"):
        extension().scan_cost(ISA_CODES["portable"], "nibbles", 8)


def test_several_may_ask_at_once() -> None:
    """In a process where nobody has."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
