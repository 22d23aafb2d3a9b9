"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import vqkernels


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(vqkernels.__path__, "vqkernels.")]
    with_triton = importlib.util.find_spec("triton") is not None
    runnable = [name for name in names if with_triton or "triton" not in name.rpartition(".")[2]]
    return ["vqkernels", *(name for name in runnable if not name.endswith(("__main__", "._C")))]


def examples(name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [test for test in found if test.examples]


EXAMPLES = [(test.name, test) for name in modules() for test in examples(name)]


@pytest.mark.parametrize("example", [test for _, test in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_example(example: doctest.DocTest) -> None:
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert report == [], "".join(report)


def test_examples_were_found() -> None:
    found = {name for name, _ in EXAMPLES}
    assert {"vqkernels.ops.nearest_code.api.nearest_code", "vqkernels.testing.inputs.strided"} <= found
