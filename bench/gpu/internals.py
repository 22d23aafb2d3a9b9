"""The knobs of the Triton lookup that its users do not see, for the probes that turn them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.gpu.context import Unavailable

_LAUNCHER = "vqkernels.ops.nearest_code.triton"
_KNOBS = ("CONFIGS", "Config", "Layout", "Tuned", "layout")


def launcher() -> Any:
    """The module with the launch table.

    Raises:
        Unavailable: if it is not there or has no such table.
    """
    if importlib.util.find_spec(_LAUNCHER) is None:
        raise Unavailable("vqkernels.nearest_code has no backend 'triton' yet")
    module = importlib.import_module(_LAUNCHER)
    missing = [knob for knob in _KNOBS if not hasattr(module, knob)]
    if missing:
        raise Unavailable(f"the Triton lookup has no {', '.join(missing)} to turn")
    return module


@contextmanager
def tiles(block_n: int, block_k: int, num_warps: int, num_stages: int) -> Iterator[None]:
    """Launch the scan with one shape, at every width and on every device."""
    module = launcher()
    before = dict(module.CONFIGS)
    forced = (module.Tuned(module.WIDEST, module.Config(block_n, block_k, num_warps, num_stages), "this probe"),)
    module.CONFIGS.update(dict.fromkeys(before, forced))
    try:
        yield
    finally:
        module.CONFIGS.update(before)


@contextmanager
def pieces(count: int) -> Iterator[None]:
    """Pack vectors as single halves (1) or as pairs of halves (3), as far as one product holds them."""
    module = launcher()
    before = module.layout

    def layout(d: int, *, chained: bool = False) -> Any:
        columns = count * d + 3
        return module.Layout(count, max(16, 1 << (columns - 1).bit_length()), 1, 16 if chained else 0)

    module.layout = layout
    try:
        yield
    finally:
        module.layout = before
