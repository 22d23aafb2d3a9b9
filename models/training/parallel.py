"""Several processes, one model: DistributedDataParallel, or FSDP2 for large models without a quantizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vqkernels
from models.errors import UserError

_WHOLE = {"full_state_dict": True, "cpu_offload": True}
_SHARED = {"full_state_dict": True, "broadcast_from_rank0": True}


class Parallel:
    """Wraps modules for all processes, and gives their state back as one process would have it."""

    def __init__(self, kind: str, processes: int) -> None:
        self.sharded = kind == "fsdp2" and processes > 1
        self._processes = processes

    def wrap(self, module: nn.Module) -> nn.Module:
        """What a loss must call instead of the module; trains what requires a gradient."""
        if self._processes == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        if not self.sharded:
            return DistributedDataParallel(module)
        return _shard(module)

    def accumulating(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around all parts of a batch but the last: gradients stay on their process."""
        if isinstance(wrapped, DistributedDataParallel) and not last:
            return wrapped.no_sync()
        if self.sharded and hasattr(wrapped, "set_requires_gradient_sync"):
            wrapped.set_requires_gradient_sync(last)
        return nullcontext()

    def weights(self, module: nn.Module) -> dict[str, Any]:
        """A whole state dict; every process must ask."""
        if not self.sharded:
            return module.state_dict()
        return _sharded_states().get_model_state_dict(module, options=_options(**_WHOLE))

    def optimizer_state(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state of an optimizer; every process must ask."""
        if not self.sharded:
            return optimizer.state_dict()
        if not optimizer.state:
            return {}  # asked for it, torch would take a first step to make one
        return dict(_sharded_states().get_optimizer_state_dict(module, optimizer, options=_options(**_WHOLE)))

    def load_optimizer(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Inverse of :meth:`optimizer_state`."""
        if self.sharded and not state:
            return
        if self.sharded:
            _sharded_states().set_optimizer_state_dict(module, optimizer, state, options=_options(**_SHARED))
        else:
            optimizer.load_state_dict(state)


def _sharded_states() -> Any:
    # a second of imports, for shards alone
    from torch.distributed.checkpoint import state_dict

    return state_dict


def _options(**options: bool) -> Any:
    return _sharded_states().StateDictOptions(**options)


def _shard(module: nn.Module) -> nn.Module:
    """Parameters divided among processes, block by block where a network calls them ``blocks``."""
    from torch.distributed.fsdp import fully_shard

    quantizers = (vqkernels.VectorQuantizer, vqkernels.ResidualQuantizer)
    if any(isinstance(part, quantizers) for part in module.modules()):
        raise UserError("parallel: expected 'ddp' for a model with a quantizer, got 'fsdp2'")
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(module)
    return module
