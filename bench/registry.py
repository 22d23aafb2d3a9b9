"""Every benchmarked op and its cases. A new op is a module with ``CASES`` and a line here."""

from __future__ import annotations

from bench.case import OpCase
from bench.clients.cases import CASES as CLIENTS
from bench.kmeans.cases import CASES as KMEANS
from bench.multilevel_nearest_code.cases import CASES as MULTILEVEL_NEAREST_CODE
from bench.nearest_code.cases import CASES as NEAREST_CODE
from bench.soft_assignment_entropy.cases import CASES as SOFT_ASSIGNMENT_ENTROPY
from bench.top_codes.cases import CASES as TOP_CODES
from bench.train_step.cases import CASES as TRAIN_STEP

OPS: dict[str, tuple[OpCase, ...]] = {
    "nearest_code": NEAREST_CODE,
    "top_codes": TOP_CODES,
    "multilevel_nearest_code": MULTILEVEL_NEAREST_CODE,
    "soft_assignment_entropy": SOFT_ASSIGNMENT_ENTROPY,
    "train_step": TRAIN_STEP,
    "clients": CLIENTS,
    "kmeans": KMEANS,
}


def cases_on(op: str, device: str) -> list[OpCase]:
    """The cases of an op that one kind of device measures, at their sizes there."""
    return [case.on(device) for case in OPS[op] if device in case.devices]


def find_case(op: str, name: str) -> OpCase:
    return next(case for case in OPS[op] if case.name == name)
