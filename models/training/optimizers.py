"""Optimizers from their description, and a running mean of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.errors import UserError
from models.training.config import OptimizerConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that train; only matrices and kernels decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.dim() >= 2]
    others = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    if config.kind == "adam":
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    if config.layer_decay != 1:
        groups = _by_layer(module, config)
    return kind([group for group in groups if group["params"]], config.lr, config.betas, config.eps, fused=fused)


def _by_layer(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """As MAE finetunes: rates that fall from the head down, and no decay of positions and of the class token."""
    if not hasattr(module, "layers_below_head"):
        raise UserError(
            f"layer_decay: expected 1 for a network that does not count its layers, got {config.layer_decay}"
        )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() >= 2 and not name.endswith(("cls_token", "pos_embed"))
            groups.setdefault((module.layers_below_head(name), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "scale": config.layer_decay**below,
        }
        for (below, decayed), parameters in groups.items()
    ]


class WeightMean:
    """Running mean of a model's parameters, ``mean <- decay mean + (1 - decay) weight``; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        trained = {name for name, _ in model.named_parameters()}
        for name, tensor in model.state_dict().items():
            if name in trained and tensor.is_floating_point():
                self.mean[name].lerp_(tensor, 1 - self.decay)
            else:
                self.mean[name].copy_(tensor)

    def load(self, mean: Mapping[str, torch.Tensor]) -> None:
        """Go on from a mean that was saved."""
        for name, tensor in self.mean.items():
            if isinstance(tensor, DTensor):
                # every process has read all of it
                whole = mean[name].to(tensor.device)
                tensor.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None))
            else:
                tensor.copy_(mean[name])
