"""Oracles and inputs for testing vector quantization code, this package's or one's own.

The oracles use torch alone and none of the package's ops, so that agreement means something.
"""

from vqkernels.testing.backends import backend_device, call_on, interpreted, to_device, usable_backends
from vqkernels.testing.budget import assert_bitwise_equal, assert_exact_lookup, assert_within_budget
from vqkernels.testing.inputs import PROBLEMS, LookupProblem, lookup_problem, strided
from vqkernels.testing.memory import peak_memory_growth

__all__ = [
    "PROBLEMS",
    "LookupProblem",
    "assert_bitwise_equal",
    "assert_exact_lookup",
    "assert_within_budget",
    "backend_device",
    "call_on",
    "interpreted",
    "lookup_problem",
    "peak_memory_growth",
    "strided",
    "to_device",
    "usable_backends",
]
