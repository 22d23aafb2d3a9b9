"""What pytest would select where there is a GPU, as JSON lines ``[test, backend, ops]``; takes pytest's arguments.

Collected as if there were one: nothing runs, and no kernel is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from unittest import mock

import pytest

import vqkernels.testing
from vqkernels._core.backend import registered_backends, registered_ops


def serving(*ops: str) -> list[str]:
    """Every backend of some ops, whether or not it can run here."""
    return [name for name in registered_backends(ops[0]) if all(name in registered_backends(op) for op in ops)]


def ops_of(item: pytest.Item) -> Iterator[str]:
    """The ops that a test is of: what its module or a parameter says, or the name of its file."""
    told = [*getattr(item.module, "OPS", ()), *getattr(item, "callspec", item).__dict__.get("params", {}).values()]
    for op in registered_ops():
        if op in [name for name in told if isinstance(name, str)] or f"test_{op.rstrip('_')}" in item.path.stem:
            yield op


class Printer:
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            backend = item.callspec.params.get("backend", "") if hasattr(item, "callspec") else ""
            sys.stdout.write(json.dumps([item.nodeid, backend, list(ops_of(item))]) + "\n")


if __name__ == "__main__":
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch.object(vqkernels.testing, "usable_backends", serving),
    ):
        sys.exit(pytest.main([*sys.argv[1:], "--collect-only", "-qq", "-p", "no:xdist"], plugins=[Printer()]))
