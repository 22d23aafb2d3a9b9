"""Run folders and checkpoints: written whole or not at all, read without running anything they contain.

    RUN/config.json  metrics.jsonl  tensorboard/
    RUN/checkpoints/step_000100/{model.safetensors, mean.safetensors, state.pt}

``model.safetensors`` is the model as it trains, ``mean.safetensors`` the running mean of its weights where a stage
asks for one, ``state.pt`` what only training needs.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from models.config_json import to_json
from models.errors import UserError, check_file, first_line, read_object

_KEEP = 2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN_STATE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


def read_config(run_dir: Path | str) -> dict[str, Any]:
    """What config.json holds; see :func:`models.training.runs.load_config`."""
    try:
        return read_object(Path(run_dir) / "config.json", "a training config")
    except FileNotFoundError as error:
        raise UserError(f"{run_dir}: not a run folder, config.json is missing") from error


def save_config(run_dir: Path, config: object) -> None:
    """Write config.json, whole or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / ".config.json.partial"
    _write(partial, to_json(config).encode())
    partial.rename(run_dir / "config.json")


def checkpoint_steps(run_dir: Path | str) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    numbers = (folder.name.removeprefix("step_") for folder in (Path(run_dir) / "checkpoints").glob("step_*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def find_checkpoint(run_dir: Path | str, step: int | None = None) -> Path:
    """Folder of the newest checkpoint, or of the one after ``step`` steps."""
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise UserError(f"{run_dir}: holds no checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{run_dir}: expected a checkpoint at one of the steps {steps}, got {step}")
    return _folder(run_dir, steps[-1] if step is None else step)


def save_checkpoint(
    run_dir: Path | str,
    step: int,
    weights: Mapping[str, torch.Tensor],
    state: dict[str, Any],
    *,
    mean: Mapping[str, torch.Tensor] | None = None,
    kept: Collection[int] = (),
) -> None:
    """Write a checkpoint under another name, bring it to the disk, rename it, drop all but the last two.

    Args:
        run_dir: run folder.
        step: steps done.
        weights: of the model.
        state: what only training needs.
        mean: running mean of the weights.
        kept: steps whose checkpoints stay, the ends of stages.
    """
    folder = _folder(run_dir, step)
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, tensors in (("model", weights), ("mean", mean)):
            if tensors is not None:
                content = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                _write(partial / f"{name}.safetensors", safetensors.torch.save(content))
        buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError, python as an OSError
        torch.save(state, buffer)
        _write(partial / "state.pt", buffer.getvalue())
        _sync_folder(partial)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno not in _DISK_FULL:
            raise
        raise UserError(f"{folder}: disk full, checkpoint not written; the one before it is untouched") from error
    for old in checkpoint_steps(run_dir)[:-_KEEP]:
        if old not in kept:
            shutil.rmtree(_folder(run_dir, old))


def read_weights(folder: Path, *, mean: bool = False) -> dict[str, torch.Tensor]:
    """The model's tensors of a checkpoint folder, or, with ``mean`` and if there is one, their running mean."""
    path = folder / "mean.safetensors"
    if not mean or not path.exists():
        path = folder / "model.safetensors"
    check_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], *, strict: bool = True) -> Any:
    """``load_state_dict``, which raises RuntimeError, too, where it would take integers for floats or the reverse."""
    for name, tensor in model.state_dict().items():
        got = weights.get(name, tensor)
        if got.is_floating_point() != tensor.is_floating_point():
            raise RuntimeError(f"{name}: expected {tensor.dtype}, got {got.dtype}")
    return model.load_state_dict(weights, strict=strict)


def read_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint folder: tensors, numbers, strings and containers, nothing else."""
    path = folder / "state.pt"
    check_file(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on a file that is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (*_BROKEN_STATE, OSError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or not state.keys() & {"optimizer", "optimizers"}:
        raise _unreadable(path, ValueError("holds no optimizer state"))
    return state


def _folder(run_dir: Path | str, step: int) -> Path:
    return Path(run_dir) / "checkpoints" / f"step_{step:06d}"


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: missing, truncated or not a checkpoint of this program ({first_line(error)}); "
        f"remove {path.parent} to go on from the checkpoint before it"
    )


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
