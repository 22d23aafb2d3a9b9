"""Runs of a quantizer and of the original it replaces, for comparison.

The original casts to float32 wherever it goes; with that cast taken out it runs in float64, and is the truth. What
it computes in float32, on the batch and on the batch turned around, is the accuracy to be met.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from needs import import_library

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
def same_noise(seed: int, turn: bool) -> Iterator[None]:
    """Noise that is the same numbers in every precision and shape, turned around with the batch."""
    randn_like = torch.randn_like
    generator = torch.Generator().manual_seed(seed)

    def noise(x: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(x.numel(), generator=generator).reshape(x.shape)
        return (drawn.flip(0) if turn else drawn).to(x)

    torch.randn_like = noise  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = randn_like


def flatten(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in flatten(part)] if value is not None else []


def turned(value: Any, size: int) -> Any:
    """Tensors that begin with a batch of this size, turned around along it."""
    batched = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
    return value.flip(0) if batched else value


def train(
    module: torch.nn.Module,
    batches: list[torch.Tensor],
    options: Mapping[str, Any],
    *,
    turn: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Train with plain gradient descent, then evaluate; everything that came out, and the state."""
    module.to(dtype)
    optimizer = torch.optim.SGD([*module.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    seen: dict[str, torch.Tensor] = {}
    for step, batch in enumerate([*batches, batches[0]]):
        module.train(step < len(batches))
        torch.manual_seed(step)
        x = batch.to(dtype)
        given = {name: value.to(dtype) if _floating(value) else value for name, value in options.items()}
        if turn:
            x, given = x.flip(0), {name: turned(value, len(x)) for name, value in given.items()}
        x = x.clone().requires_grad_()
        with same_noise(step, turn):
            quantized, *rest = module(x, **given)
        parts = [turned(t, len(x)) if turn else t for t in flatten([quantized, rest])]
        if module.training:
            cotangent = torch.linspace(-1, 1, quantized.numel(), dtype=dtype).reshape(quantized.shape) / 8
            cotangent = cotangent.flip(0) if turn else cotangent
            # the loss, or what comes in its place
            (rest[-1 if len(rest) == 1 else 1].sum() + (quantized * cotangent).sum()).backward()
            seen[f"{step} gradient"] = turned(x.grad, len(x)) if turn else x.grad
            optimizer.step()
            optimizer.zero_grad()
        seen |= {f"{step} {number}": part.detach() for number, part in enumerate(parts)}
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
    generator = torch.Generator().manual_seed(11)
    batches = [torch.randn(*shape, generator=generator) for _ in range(steps)]
    ours.load_state_dict(theirs.state_dict())
    with in_float64():
        truth = train(copy.deepcopy(theirs), batches, options, dtype=torch.float64)
    again = train(copy.deepcopy(theirs), batches, options, turn=True)
    plain = train(theirs, batches, options)
    actual = train(ours, batches, options)
    names = [name for name in truth if not skip(name)]
    assert [name for name in names if name not in actual] == []
    scalars: dict[str, list[str]] = {}
    for name in names:
        got, want = actual[name], truth[name]
        assert got.shape == want.shape, f"{name}: {list(got.shape)} for {list(want.shape)}"
        assert got.dtype == plain[name].dtype, f"{name}: {got.dtype} for {plain[name].dtype}"
        if not want.is_floating_point():
            assert torch.equal(got, want), f"{name}: {int((got != want).sum())} differ"
            continue
        # one number can be right by luck, so that those of all steps are judged together
        scalars.setdefault(name.partition(" ")[2] if want.dim() == 0 else name, []).append(name)
    for together in scalars.values():
        runs = (torch.stack([run[name] for name in together]) for run in (actual, truth, plain, again))
        got, want, *references = runs
        farther = (references[0] - want).abs() > (references[1] - want).abs()
        try:
            assert_within_budget(got, want, torch.where(farther, *references), factor=factor)
        except AssertionError as error:
            raise AssertionError(f"{together[0]}: {error}") from None
    theirs.load_state_dict(ours.state_dict())
