"""A tokenizer recipe trained for a few hundred steps, and what of a step is the quantizer's."""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from torch import nn

import vqkernels
from bench.case import needed
from bench.gpu.context import Context, Unavailable

RECIPE = "vqgan_fc"
_NEEDS = ("accelerate", "tyro", "skimage", "sklearn", "PIL")
_BATCH, _STEPS, _OTHERS = 16, 300, 60  # crops of 256 pixels; steps with the recipe's own quantizer, and with another
_WARM_UP = 10  # steps outside the clock
_BLOCK = 10  # steps between two looks at the clock


class _Adapted(nn.Module):
    """A quantizer of vector-quantize-pytorch, or the drop-in for it, in the place of the recipe's."""

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor) -> tuple[Any, ...]:  # [B, D, h, w]
        quantized, indices, loss = self.quantizer(z)
        return quantized, indices, loss.sum(), {}


class _Nothing(nn.Module):
    """No quantizer: what a step costs without."""

    def forward(self, z: torch.Tensor) -> tuple[Any, ...]:  # [B, D, h, w]
        return z * 1.0, None, z.new_zeros(()), {}


def _recipe(context: Context) -> Any:
    """The recipe's config for this machine: as published, but for the batch, the schedule and the arithmetic."""
    recipes = importlib.import_module("models.recipes")
    config = recipes.TOKENIZERS["vqgan_pocket" if context.smoke else RECIPE]()
    optimizer = dataclasses.replace(config.stage.optimizer, lr=1e-4, warmup_steps=2 if context.smoke else 20)
    changes = {"batch_size": 2, "steps": 3} if context.smoke else {"batch_size": _BATCH, "steps": _STEPS}
    stage = dataclasses.replace(config.stage, **changes, optimizer=optimizer)
    return dataclasses.replace(config, stage=stage, mixed_precision="bf16")


def tokenizer_recipe(context: Context) -> None:
    """Whole steps of a VQGAN at 256 pixels, with our quantizer, with the one people use, and with none."""
    if missing := [reason for module in _NEEDS if (reason := needed(module))]:
        raise Unavailable("; ".join(missing))
    config = _recipe(context)
    device = context.device.place(torch.empty(0)).device
    width, codes = config.quantizer.code_dim, config.quantizer.num_codes
    options = {"dim": width, "codebook_size": codes, "accept_image_fmap": True, "rotation_trick": False}

    def original() -> nn.Module:
        if reason := needed("vector_quantize_pytorch"):
            raise Unavailable(reason)
        return _Adapted(importlib.import_module("vector_quantize_pytorch").VectorQuantize(**options))

    contestants: dict[str, Callable[[], nn.Module] | None] = {
        "recipe": None,
        "drop-in": lambda: _Adapted(vqkernels.VectorQuantize(**options)),
        "vector-quantize-pytorch": original,
        "no quantizer": _Nothing,
    }
    stage = config.stage
    shape = {"recipe": config.recipe, "batch": stage.batch_size, "pixels": stage.image_size, "codes": codes}
    context.record("shape", {**shape, "dim": width, "arithmetic": config.mixed_precision})
    for number, (name, quantizer) in enumerate(contestants.items()):
        # half of the time is for the recipe itself, the rest for the others in equal parts
        seconds = 0.5 * context.left if not number else 0.9 * context.left / (len(contestants) - number)
        try:
            steps = config.steps if not number else min(config.steps, _OTHERS)
            finding = _train(config, quantizer, device, steps, seconds)
        except Unavailable as reason:
            context.record(name, {"not available": str(reason)})
            continue
        context.record(name, finding)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not finding["finite"] or not (finding["falls"] or context.smoke):
            raise RuntimeError(f"{name}: the loss is {'not finite' if not finding['finite'] else 'not falling'}")


def _train(
    config: Any,
    quantizer: Callable[[], nn.Module] | None,
    device: torch.device,
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Steps until there were enough or time is up; times are means of blocks, of which the median is told."""
    step_module, tasks, parallels, timing, loaders = (
        importlib.import_module(f"models.{name}")
        for name in (
            "training.step",
            "training.tokenizer_task",
            "training.parallel",
            "training.timing",
            "data.loader",
        )
    )
    step_module.seed_step(config.seed, 0, 0)
    tokenizer = importlib.import_module("models.tokenizers").build_tokenizer(config.network, config.quantizer)
    if quantizer is not None:
        tokenizer.quantizer = quantizer()
    task = tasks.TokenizerTask(config, 0, tokenizer.to(device), device)
    for module in task.players.values():
        module.to(device)
    stepper = step_module.Stepper(task, config, parallels.Parallel("ddp", 1), device)
    source, transform = task.data("train")
    batch_size, seed = config.stage.batch_size, config.seed
    batches = iter(loaders.Loader(source, transform, batch_size=batch_size, seed=seed, workers=0))
    whole, part = timing.Stopwatch(device), timing.Stopwatch(device)
    warm_up, block = (1, 1) if steps <= _BLOCK else (_WARM_UP, _BLOCK)
    losses: list[float] = []
    times: list[tuple[float, float]] = []
    began = time.monotonic()
    with part.watching(tokenizer.quantizer):
        for step in range(1, steps + 1):
            whole.start()
            values = stepper.step({name: tensor.to(device) for name, tensor in next(batches).items()}, step)
            whole.stop()
            if step == warm_up or (step > warm_up and (step - warm_up) % block == 0):
                taken = whole.take() / block, part.take() / block
                losses.append(float(values["reconstruction"]))
                times += [taken] if step > warm_up else []
                if time.monotonic() - began > seconds:
                    break
    step_seconds, part_seconds = (median(column) for column in zip(*times, strict=True))
    few = max(1, len(losses) // 5)
    first, last = mean(losses[:few]), mean(losses[-few:])
    return {
        "steps": step,
        "step seconds": step_seconds,
        "quantizer seconds": part_seconds,
        "quantizer share": part_seconds / step_seconds,
        "reconstruction loss": {"first": first, "last": last},
        "finite": all(math.isfinite(loss) for loss in losses),
        "falls": last < first,
    }
