"""Types of the mended interpreter are those of Triton. Its values are held to every oracle of ``tests/ops``."""

from __future__ import annotations

import pytest
import torch

from vqkernels import nearest_code
from vqkernels.testing import interpreted

pytestmark = pytest.mark.skipif(not interpreted("triton"), reason="the machine has a GPU, which interprets nothing")


def test_types_are_compared_named_and_refused_as_before() -> None:
    nearest_code(torch.ones(1, 2), torch.ones(1, 2), backend="triton")
    from triton import language

    one, same, wide, other = (
        language.core.block_type(dtype, shape)
        for dtype, shape in (
            (language.int32, [4, 8]),
            (language.int32, (language.constexpr(4), 8)),
            (language.int64, [4, 8]),
            (language.int32, [8, 4]),
        )
    )
    assert one == same
    assert one != wide
    assert one != other
    assert (one.numel, one.nbytes, str(wide), repr(one)) == (32, 128, "<['4', '8'], int64>", "<['4', '8'], int32>")
    with pytest.raises(TypeError, match="0d block_type"):
        language.core.block_type(language.int32, [])
    with pytest.raises(ValueError, match="power of 2"):
        language.core.block_type(language.int32, [3])
    with pytest.raises(ValueError, match="exceeds triton maximum"):
        language.core.block_type(language.int32, [1 << 21])
    language.core.block_type(language.int32, [4])
    with pytest.raises(TypeError, match="constexpr"):
        language.core.block_type(language.int32, [4.0])
