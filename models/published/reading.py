"""State dicts out of published files, read without running anything they contain, and into modules."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from models.errors import UserError, check_file

_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)
_UNREADABLE += (safetensors.SafetensorError,)
# options of a command, which training code puts beside the weights: a bag of values without code of its own
_HARMLESS = [argparse.Namespace]


def read_state_dict(path: Path, wrapped: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a file by name.

    Args:
        path: ``.safetensors``, or what torch.save wrote.
        wrapped: where training code puts the weights among other things, the first of these that is there; a bare
            state dict is taken as well.
    """
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own words would send the reader to an unsafe way of loading
        raise UserError(f"{path}: missing, or not a file of tensors ({type(error).__name__})") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in wrapped if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: expected a state dict, got {type(content).__name__}")
    return dict(content)


def fill(module: nn.Module, names: Mapping[str, str], weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy all of ``weights`` into a module.

    Args:
        module: what they are of.
        names: its name of each weight -> the name among ``weights``.
        weights: tensors by name; none may be missing or left over.
        source: what errors say first.
    """
    if wrong := sorted(set(names.values()) ^ set(weights)):
        what = "lacks" if wrong[0] not in weights else "has unknown"
        raise UserError(f"{source}: {what} {wrong[0]} ({len(wrong)} names differ)")
    own = module.state_dict()
    assert {name for name, _ in module.named_parameters()} <= names.keys() <= own.keys()
    with torch.no_grad():
        for name, theirs in names.items():
            tensor = weights[theirs]
            if own[name].shape != tensor.shape:
                expected, got = list(own[name].shape), list(tensor.shape)
                raise UserError(f"{source}: {theirs}: expected shape {expected}, got {got}")
            own[name].copy_(tensor)
