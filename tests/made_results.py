"""A result of the benchmark made by hand, for tests of what is made of results."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench import record
from bench.case import Verdict, Work
from bench.ceiling import Ceiling
from bench.ours import OURS
from bench.timing import Timing


def made_run(**changes: Any) -> record.Run:
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
