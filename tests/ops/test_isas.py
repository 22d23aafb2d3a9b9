"""Every instruction set that this processor has returns the same bits (``tests/ops/isa_problems.py`` runs more)."""

from __future__ import annotations

import pytest
from isa_problems import differences
from needs import needs_extension
from variants import processor_isas


@pytest.mark.slow
@needs_extension
def test_instruction_sets_agree() -> None:
    assert list(differences(range(10_000), processor_isas(), [], 50_000)) == []
