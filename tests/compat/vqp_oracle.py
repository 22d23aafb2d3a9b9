"""Runs of a quantizer and of the original it replaces, for comparison.

The original casts to float32 wherever it goes; with that cast taken out it runs in float64, and is the truth. What
it computes in float32, on the batches and on batches moved in their last bits, is the accuracy to be met.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from needs import import_library
from rounding import farthest, in_their_last_bits

from vqkernels.testing import assert_within_budget

original = import_library("vector_quantize_pytorch")


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Code that asks for float32, or makes it of Python numbers, gets float64."""
    cast, tensor = torch.Tensor.float, torch.tensor

    def wide(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = tensor(*args, **kwargs)
        return made.double() if made.dtype == torch.float32 else made

    torch.Tensor.float, torch.tensor = torch.Tensor.double, wide  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float, torch.tensor = cast, tensor  # type: ignore[method-assign]


@contextlib.contextmanager
def same_noise(seed: int) -> Iterator[None]:
    """Noise that is the same numbers in every precision and shape."""
    randn_like = torch.randn_like
    generator = torch.Generator().manual_seed(seed)

    def noise(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.numel(), generator=generator).reshape(x.shape).to(x)

    torch.randn_like = noise  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = randn_like


def flatten(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in flatten(part)] if value is not None else []


def train(
    module: torch.nn.Module,
    batches: Sequence[torch.Tensor],
    options: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Train with plain gradient descent, then evaluate; everything that came out, and the state."""
    module.to(dtype)
    optimizer = torch.optim.SGD([*module.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    seen: dict[str, torch.Tensor] = {}
    for step, batch in enumerate([*batches, batches[0]]):
        module.train(step < len(batches))
        torch.manual_seed(step)
        x = batch.to(dtype).clone().requires_grad_()
        given = {name: value.to(dtype) if _floating(value) else value for name, value in options.items()}
        with same_noise(step):
            quantized, *rest = module(x, **given)
        if module.training:
            cotangent = torch.linspace(-1, 1, quantized.numel(), dtype=dtype).reshape(quantized.shape) / 8
            # the loss, or what comes in its place
            (rest[-1 if len(rest) == 1 else 1].sum() + (quantized * cotangent).sum()).backward()
            seen[f"{step} gradient"] = x.grad
            optimizer.step()
            optimizer.zero_grad()
        seen |= {f"{step} {number}": part.detach() for number, part in enumerate(flatten([quantized, rest]))}
    return seen | {f"state {name}": value.clone() for name, value in module.state_dict().items()}


def _floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def assert_trains_alike(
    theirs: torch.nn.Module,
    ours: torch.nn.Module,
    shape: tuple[int, ...],
    options: Mapping[str, Any] | None = None,
    *,
    steps: int = 3,
    skip: Callable[[str], bool] = lambda name: False,
    factor: float = 4.0,
) -> None:
    """Assert equal integers and, within ``factor`` times the original's own rounding error, equal numbers.

    In training and after. Both start from one state, loaded strictly, and go back to each other strictly in the end.
    """
    options = options or {}
    ours.load_state_dict(theirs.state_dict())
    for seed in range(11, 20):
        generator = torch.Generator().manual_seed(seed)
        batches = [torch.randn(*shape, generator=generator) for _ in range(steps)]
        with in_float64():
            truth = train(copy.deepcopy(theirs), batches, options, dtype=torch.float64)
        runs = [train(copy.deepcopy(theirs), some, options) for some in in_their_last_bits(batches, runs=4)]
        names = [name for name in truth if not skip(name)]
        codes = [name for name in names if not truth[name].is_floating_point()]
        # two codes as near as rounding tells: which is chosen is up to the processor
        if all(torch.equal(run[name], truth[name]) for run in runs for name in codes):
            break
    else:
        raise AssertionError("every batch has a near tie: expected codes that rounding does not change")
    references = [*runs, train(theirs, batches, options)]
    actual = train(ours, batches, options)
    assert [name for name in names if name not in actual] == []
    scalars: dict[str, list[str]] = {}
    for name in names:
        got, want = actual[name], truth[name]
        assert got.shape == want.shape, f"{name}: {list(got.shape)} for {list(want.shape)}"
        expected = references[0][name].dtype
        assert got.dtype == expected, f"{name}: {got.dtype} for {expected}"
        if not want.is_floating_point():
            assert torch.equal(got, want), f"{name}: {int((got != want).sum())} differ"
            continue
        # one number can be right by luck, so that those of all steps are judged together
        scalars.setdefault(name.partition(" ")[2] if want.dim() == 0 else name, []).append(name)
    for together in scalars.values():
        got, want, *others = (torch.stack([run[n] for n in together]) for run in (actual, truth, *references))
        try:
            assert_within_budget(got, want, farthest(want, others), factor=factor)
        except AssertionError as error:
            raise AssertionError(f"{together[0]}: {error}") from None
    theirs.load_state_dict(ours.state_dict())
