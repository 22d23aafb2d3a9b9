"""Functions called wrongly: the right answer all the same, or one line that names an argument and nothing done."""

from __future__ import annotations

import pytest
from functions import FUNCTIONS
from fuzzing import Draw, fuzz
from outcome import nonfinite, outcome, snapshot


@pytest.mark.parametrize("scale", [1, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name: str, scale: int) -> None:
    function = FUNCTIONS[name]

    def body(draw: Draw) -> None:
        right = function.arguments(draw.pick)
        arguments = draw.spoilt(right, function.names)
        before = snapshot(arguments)
        finite = not nonfinite({name: arguments[name] for name in function.written})
        # num_clusters is what k-means calls the n_clusters of an estimator
        result = outcome(lambda: function.call(**arguments), (*function.names, "num_clusters"))
        after = snapshot(arguments)
        failed = isinstance(result, Exception)
        touched = {name for name in before if before[name] != after[name]}
        assert touched <= (set() if failed else set(function.written))
        if finite:
            assert nonfinite({name: arguments[name] for name in function.written}) == []
        if not failed:
            function.check(arguments, result)

    fuzz(body, 30 * scale, fresh=scale > 1)
