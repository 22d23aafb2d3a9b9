"""Parameters that a training step writes, where FSDP2 keeps them in shards."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn


class WrittenParameters(nn.Module):
    """A module that writes its parameters in the forward.

    ``fully_shard`` puts a whole parameter in place for a forward and the shard back after it; what was written would
    be lost. So a shard takes over what the whole parameter has become when it takes its place.
    """

    _kept_as: Mapping[str, torch.dtype] = MappingProxyType({})  # parameters that are sharded
    _written: frozenset[str] = frozenset()  # those of them whose shard does not know yet

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get("_parameters", {}).get(name)
        super().__setattr__(name, value)
        if not _is_shard(value):
            return
        self._kept_as = {**self._kept_as, name: value.dtype}
        if name in self._written and not _is_shard(before):
            _copy_to_shard(before, value)
            self._written = self._written - {name}

    @property
    def is_sharded(self) -> bool:
        return bool(self._kept_as)

    def about_to_write(self, *names: str) -> None:
        """To be called by a training step before its first write.

        Raises:
            ValueError: if FSDP computes in another precision than it keeps: shards would be rounded with every step.
        """
        for name in names:
            parameter, kept = self.get_parameter(name), self._kept_as.get(name)
            if kept is not None and kept != parameter.dtype:
                raise ValueError(f"{name}: expected FSDP to compute in {kept}, as it is kept, got {parameter.dtype}")
            if kept is not None:
                self._written = self._written | {name}


def _is_shard(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and hasattr(value, "placements")


@torch.no_grad()
def _copy_to_shard(whole: torch.Tensor, shard: Any) -> None:
    # no part of torch that everybody would have to import
    from torch.distributed.tensor import distribute_tensor

    # nothing is sent: every process has the whole
    part = distribute_tensor(whole.detach(), shard.device_mesh, shard.placements, src_data_rank=None)
    shard.to_local().copy_(part.to_local())
