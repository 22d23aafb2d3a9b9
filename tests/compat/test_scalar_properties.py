"""What holds for any options of the scalar quantizers. Oracles: the round trip, the bounds of the codes, the module
itself uncompiled, and a fresh process.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels.compat.vector_quantize_pytorch._tensors import digits_of, indices_of, radix_basis
from vqkernels.testing import assert_bitwise_equal

ROOT = Path(__file__).parents[2]
LEVELS = st.lists(st.integers(2, 40), min_size=1, max_size=5)
VECTORS = st.tuples(st.integers(0, 2**31), st.floats(1e-3, 1e3))


def vectors(drawn: tuple[int, float], *shape: int) -> torch.Tensor:
    seed, size = drawn
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(levels=LEVELS, drawn=VECTORS, symmetric=st.booleans(), hard=st.booleans())
def test_fsq(levels: list[int], drawn: tuple[int, float], symmetric: bool, hard: bool) -> None:
    if not symmetric:
        levels = [max(3, level) for level in levels]
    module = adapters.FSQ(levels, preserve_symmetry=symmetric, bound_hard_clamp=hard)
    values, indices = module(vectors(drawn, 2, 9, len(levels)))
    assert indices.dtype == (torch.int32 if math.prod(levels) <= 2**31 else torch.int64)
    assert_bitwise_equal(module.indices_to_codes(indices), values)
    assert torch.equal(module.codes_to_indices(values), indices)
    assert values.abs().max() <= 1
    level = module.indices_to_level_indices(indices)
    assert bool(((level >= 0) & (level < torch.tensor(levels))).all())


@given(levels=LEVELS, drawn=VECTORS)
def test_every_index_is_its_own_code(levels: list[int], drawn: tuple[int, float]) -> None:
    size = math.prod(levels)
    indices = torch.randint(0, size, (50,), generator=torch.Generator().manual_seed(drawn[0]))
    basis = radix_basis(levels)
    assert basis is not None
    digits = digits_of(indices, basis, torch.tensor(levels))
    assert torch.equal(indices_of(digits, basis).long(), indices)
    for quantizer in (adapters.FSQ(levels, preserve_symmetry=True), adapters.LatentQuantize(levels, len(levels))):
        codes = quantizer.indices_to_codes(indices[None])
        codes = codes.movedim(1, -1) if isinstance(quantizer, adapters.LatentQuantize) else codes
        assert torch.equal(quantizer.codes_to_indices(codes)[0].long(), indices)


@given(bits=st.integers(1, 40), codebooks=st.integers(1, 3), drawn=VECTORS, spherical=st.booleans())
def test_lfq(bits: int, codebooks: int, drawn: tuple[int, float], spherical: bool) -> None:
    module = adapters.LFQ(codebook_size=2**bits, num_codebooks=codebooks, spherical=spherical).eval()
    x = vectors(drawn, 2, 9, bits * codebooks)
    values, indices, loss = module(x)
    assert_bitwise_equal(module.indices_to_codes(indices), values)
    assert torch.equal(values > 0, x > 0)
    assert bool(((indices >= 0) & (indices < 2**bits)).all())
    assert loss.item() == 0


@settings(max_examples=40)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=3), depth=st.integers(1, 5), drawn=VECTORS)
def test_residual_fsq_gets_closer(levels: list[int], depth: int, drawn: tuple[int, float]) -> None:
    """Each layer leaves at most half a step of its scale, up to the rounding of sums of terms of size 1."""
    module = adapters.ResidualFSQ(levels=levels, num_quantizers=depth)
    x = vectors(drawn, 1, 9, len(levels))
    values, indices, codes = module(x, return_all_codes=True)
    assert_bitwise_equal(module.get_output_from_indices(indices), values)
    bounded = module._bound(x)
    counts = torch.tensor(levels)
    for layers in range(1, depth + 1):
        left = (bounded - codes[:layers].sum(0)).abs()
        step = module.scales[layers - 1] / (counts - 1)
        assert bool((left <= step * (1 + 1e-3) + 2 * layers * torch.finfo(torch.float32).eps).all())


MODULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "FSQ": ({"levels": [5, 4], "dim": 6, "orthogonal_rotation": True}, (2, 9, 6)),
    "LFQ": ({"dim": 6, "codebook_size": 16, "commitment_loss_weight": 0.1}, (2, 9, 6)),
    "FSP": ({"levels": [5, 4], "quantize_rate": 1.0}, (2, 9, 2)),
    "LatentQuantize": ({"levels": [5, 4], "dim": 6}, (2, 6, 9)),
    "ResidualFSQ": ({"levels": [5, 5], "dim": 6, "num_quantizers": 2}, (2, 9, 6)),
    "ResidualLFQ": ({"codebook_size": 16, "dim": 6, "num_quantizers": 2}, (2, 9, 6)),
    "GroupedResidualFSQ": ({"levels": [5, 5], "dim": 6, "num_quantizers": 2, "groups": 2}, (2, 9, 6)),
    "GroupedResidualLFQ": ({"codebook_size": 4, "dim": 6, "num_quantizers": 2, "groups": 2}, (2, 9, 6)),
    "BinaryMapper": ({"bits": 3}, (2, 9, 3)),
}


# one of each kind of module by default
GRAPHED = {("LFQ", True), ("FSQ", False), ("ResidualFSQ", True)}


@pytest.mark.filterwarnings("ignore:orthogonal_rotation")
@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, training, marks=() if (name, training) in GRAPHED else pytest.mark.slow)
        for name in MODULES
        for training in (True, False)
    ],
)
def test_compiles_to_one_graph(name: str, training: bool) -> None:
    options, shape = MODULES[name]
    module = getattr(adapters, name)(**options).train(training)
    if name == "BinaryMapper":
        module.forward = lambda logits, plain=module.forward: plain(logits, deterministic=True)
    x = torch.randn(shape)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, actual = module(x), compiled(x)
    for a, b in zip(actual[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b)
    if training:
        for run in (module, compiled):
            z = x.clone().requires_grad_()
            run(z)[0].square().sum().backward()
            assert bool(z.grad.isfinite().all())


def test_a_masked_loss_compiles_to_one_graph() -> None:
    module = adapters.LFQ(dim=6)
    x, mask = torch.randn(2, 9, 6), torch.rand(2, 9) < 0.5
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask).entropy_aux_loss, module(x, mask=mask).entropy_aux_loss)


def test_importing_loads_no_class_before_it_is_asked_for() -> None:
    program = """
import sys
import vqkernels.compat.vector_quantize_pytorch as adapters
prefix = adapters.__name__ + "."
print([name for name in sys.modules if name.startswith(prefix)])
adapters.FSQ
print(prefix + "finite_scalar_quantization" in sys.modules, prefix + "lookup_free_quantization" in sys.modules)
print(set(adapters.__all__) <= set(dir(adapters)), bool({"einops", "einx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False", "True False"]
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = adapters.Nothing
