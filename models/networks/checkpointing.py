"""Gradient checkpointing: what a block computed is dropped and computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: torch.Tensor, checkpointing: bool) -> torch.Tensor:
    """``block(*inputs)``, its activations computed again in backward where ``checkpointing`` says so.

    Random numbers are those of the first pass, and batch norms count a batch once.
    """
    if not checkpointing or not torch.is_grad_enabled():
        return block(*inputs)
    counting = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    # contexts are passed only where they are needed: torch.compile takes none
    contexts: dict[str, Any] = {"context_fn": functools.partial(_contexts, counting)} if counting else {}
    run: Callable[..., torch.Tensor] = checkpoint
    return run(block, *inputs, use_reentrant=False, preserve_rng_state=True, **contexts)


def _contexts(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _running_statistics_kept(norms)


@contextmanager
def _running_statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """The second pass counts its batch into copies of the running statistics."""
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
