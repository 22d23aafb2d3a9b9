"""State dicts out of published files, read without running anything they contain."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from models.errors import UserError

_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)
_UNREADABLE += (safetensors.SafetensorError,)


def read_state_dict(path: Path, wrapped: str | None) -> dict[str, torch.Tensor]:
    """The tensors of a file by name.

    Args:
        path: ``.safetensors``, or what torch.save wrote.
        wrapped: where training code puts the weights among other things; a bare state dict is taken as well.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own words would send the reader to an unsafe way of loading
        raise UserError(f"{path}: missing, or not a file of tensors ({type(error).__name__})") from error
    if wrapped is not None and isinstance(content, Mapping) and isinstance(content.get(wrapped), Mapping):
        content = content[wrapped]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: expected a state dict, got {type(content).__name__}")
    return dict(content)
