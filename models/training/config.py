"""What a training is, as data: a run is a list of stages; every kind of run adds what it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from models.config_json import Flat, Hidden

_MOST_SAMPLES = 1 << 20  # that a batch is put together of before anything else is asked


def check_positive(config: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is not above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            kind = "at least 1" if isinstance(getattr(config, name), int) else "more than 0"
            raise ValueError(f"{name}: expected {kind}, got {getattr(config, name)}")


def check_not_negative(config: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is below 0, infinite or no number."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}: expected at least 0, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam or AdamW, and how the learning rate moves: linear warm-up, level, then down."""

    kind: Literal["adam", "adamw"] = "adam"  # "adamw" decays weights, matrices only
    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of the running means
    eps: float = 1e-8  # of the division
    weight_decay: float = 0.0  # of "adamw"
    warmup_steps: int = 0  # steps of linear warm-up
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "cosine"  # the way down
    schedule_start: int = 0  # step after which it begins, if later than the warm-up
    final_lr: float = 0.0  # learning rate it ends at; more than 0 for "exponential"
    max_grad_norm: float | None = None  # gradient clipping; None is off
    layer_decay: float = 1.0  # factor on the learning rate from a layer to the one below; of classifiers

    def __post_init__(self) -> None:
        check_positive(self, "lr")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a number in (0, 1], got {self.layer_decay}")
        check_not_negative(self, "lr", "warmup_steps", "schedule_start", "final_lr", "weight_decay", "eps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected numbers from 0 on below 1, got {self.betas}")
        if self.max_grad_norm is not None:
            check_positive(self, "max_grad_norm")
        if self.schedule == "exponential" and not self.final_lr > 0:
            raise ValueError(f"final_lr: expected more than 0 with schedule='exponential', got {self.final_lr}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` of ``steps``; the first is 1."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        level = max(self.warmup_steps, self.schedule_start)
        if self.schedule == "constant" or step <= level:
            return self.lr
        done = (step - 1 - level) / (steps - level)
        if self.schedule == "linear":
            return self.lr + (self.final_lr - self.lr) * done
        if self.schedule == "cosine":
            return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * (self.final_lr / self.lr) ** done


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of a training with one set of losses and one optimizer; kinds of runs add their losses."""

    name: Hidden[str] = "train"  # names its checkpoints
    steps: int = 600  # optimizer steps
    batch_size: int = 32  # samples per optimizer step and process
    accumulate: int = 1  # parts in which a batch goes through the network
    start: str = "previous"  # weights: "previous" stage, "fresh", or a run folder
    trains: tuple[str, ...] = ("all",)  # parts of the model that train; the others are frozen, statistics too
    ema_decay: float | None = None  # of a running mean of the weights, which then is what gets evaluated
    optimizer: Flat[OptimizerConfig] = OptimizerConfig()

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch_size", "accumulate")
        if self.batch_size > _MOST_SAMPLES:
            raise ValueError(f"batch_size: expected at most {_MOST_SAMPLES}, got {self.batch_size}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of batch_size {self.batch_size}, got {self.accumulate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number between 0 and 1, got {self.ema_decay}")
        if not self.trains:
            raise ValueError("trains: expected the name of a part or 'all', got none")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete training. Two equal configs give the same bits on the same machine."""

    recipe: Hidden[str]  # name of the recipe this started from
    data: str = "embedded"  # "embedded" photographs, "scenes", a folder, ... see models/data
    seed: int = 0  # of weights, batches and everything random
    workers: int = 0  # processes that load data; 0 loads in the training process
    mixed_precision: Literal["no", "bf16"] = "no"  # autocast of the networks
    parallel: Literal["ddp", "fsdp2"] = "ddp"  # how several processes share a model; "fsdp2" takes no quantizer
    compile: bool = False  # torch.compile of the model
    checkpoint_activations: bool = False  # compute blocks of large networks again in the backward, to save memory
    log_every: int = 10  # steps per line of metrics.jsonl
    val_every: int = 100  # steps per look at held-out samples
    val_samples: int = 8  # held-out samples looked at
    checkpoint_every: int = 100  # steps per checkpoint
    track: Literal["none", "wandb", "trackio"] = "none"  # send the log there too, if it is installed

    def __post_init__(self) -> None:
        check_positive(self, "log_every", "val_every", "val_samples", "checkpoint_every")
        if self.workers < 0:
            raise ValueError(f"workers: expected at least 0, got {self.workers}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a number from 0 to 2**63 - 1, got {self.seed}")

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages in their order."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> int:
        """Number of the stage that step ``step`` (the first is 1) belongs to."""
        end = 0
        for number, stage in enumerate(self.stages):
            end += stage.steps
            if step <= end:
                return number
        raise ValueError(f"step: expected at most {end}, got {step}")

    def start_of(self, stage: int) -> int:
        """Steps before a stage."""
        return sum(before.steps for before in self.stages[:stage])
