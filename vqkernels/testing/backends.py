"""Which backends a test or a benchmark can run here."""

from __future__ import annotations

from vqkernels import explain


def usable_backends(*ops: str) -> list[str]:
    """Return the backends that serve every one of some ops on this machine.

    Args:
        *ops: names of registered ops, at least one.

    Returns:
        Backend names in order of preference. Arguments of a call may still rule one out.

    Raises:
        ValueError: if an op is not registered.

    Example:
        >>> from vqkernels.testing import usable_backends
        >>> usable_backends("nearest_code", "gather_codes")[-1]
        'reference'
    """
    first, *others = [[choice.backend for choice in explain(op) if not choice.reasons] for op in ops]
    return [name for name in first if all(name in other for other in others)]
