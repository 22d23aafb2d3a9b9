"""Swap the quantizers of other libraries inside a model for the adapters of this package."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from contextlib import nullcontext
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

from vqkernels.compat._recipes import AROUND, Recipe, class_name, recipe_for
from vqkernels.nn.unsent import Unsent

_LOOKS_LIKE_A_QUANTIZER = re.compile(r"(?i:quantiz|codebook)|(FSP|FSQ|LFQ|VQ)$")
_PARTS = ("_parameters", "_buffers", "_modules")
# what torch itself keeps about a module besides: hooks
_ABOUT = vars(nn.Module()).keys() - {*_PARTS, "_non_persistent_buffers_set", "training"}


class ReplacedQuantizers(NamedTuple):
    """Result of :func:`replace_quantizers`: paths of modules inside the model, and the classes they were of."""

    replaced: dict[str, str]
    left: dict[str, str]  # what looks like a quantizer, or is derived from a known one, and was not replaced


def replace_quantizers(model: nn.Module) -> ReplacedQuantizers:
    """Swap the known quantizers of other libraries inside a model, in place, for those of this package.

    Every such module becomes an adapter and stays the same object: so do its parameters, saved buffers, submodules
    and hooks, so that optimizers, ties between modules and whatever else refers to them go on working. Values,
    device, dtype, ``requires_grad``, training mode and the names in the state dict do not change. The libraries
    are not imported.

    Known are ``VectorQuantizer`` of diffusers (as in ``VQModel``), the quantizers of vector-quantize-pytorch except
    ``FSP``, ``LatentQuantize`` and ``EvoLFQ``, those of encodec and of taming-transformers, that of LlamaGen,
    Open-MAGVIT2's ``LFQ`` and IBQ's ``IndexPropagationQuantize``, those of descript-audio-codec, SNAC, moshi and
    SpeechTokenizer, and those of transformers that look for the nearest code: in Encodec, DAC, Mimi, X-Codec, Higgs
    Audio, WavTokenizer, Chameleon, Emu3, GLM-Image, Janus and Apertus. ``vqkernels/compat/README.md`` lists what the
    adapters do differently.

    Args:
        model: the model, which may itself be such a quantizer.

    Returns:
        ``ReplacedQuantizers(replaced, left)``: two dictionaries from the path of a module to the name of its former
        class. ``left`` has what looks like a quantizer and was not touched: classes that are not known, classes
        derived from known ones.

    Raises:
        TypeError: if it is no module.
        NotImplementedError: if a known quantizer is configured in a way that its adapter does not offer. The model
            is then as it was.

    Example:
        >>> import torch, vqkernels
        >>> from vqkernels.compat.diffusers import VectorQuantizer
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), VectorQuantizer(n_e=16, vq_embed_dim=4, beta=0.25))
        >>> vqkernels.replace_quantizers(model)  # nothing to do: it is one of ours already
        ReplacedQuantizers(replaced={}, left={})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    adapters: dict[str, tuple[nn.Module, nn.Module | type[nn.Module], Recipe]] = {}
    left = {}
    for path, module in model.named_modules():
        recipe = recipe_for(module)
        if recipe is not None:
            adapters[path] = (module, _adapter(path, module, recipe), recipe)
        elif _is_unknown_quantizer(module):
            left[path] = class_name(type(module))
    shown = {path: module for path, (module, _, recipe) in adapters.items() if not recipe.internal}
    replaced = {path: class_name(type(module)) for path, module in shown.items()}
    # from here on nothing can fail
    for module, adapter, _ in adapters.values():
        _become(module, adapter)
    for module, _, recipe in adapters.values():
        recipe.settle(module)
    return ReplacedQuantizers(replaced, left)


def _is_unknown_quantizer(module: nn.Module) -> bool:
    ours = class_name(type(module)).startswith(("vqkernels.", "torch."))
    looks = any(_LOOKS_LIKE_A_QUANTIZER.search(base.__name__) for base in type(module).__mro__)
    return looks and not ours and recipe_for(module) is None and class_name(type(module)) not in AROUND


def _adapter(path: str, original: nn.Module, recipe: Recipe) -> nn.Module | type[nn.Module]:
    """An adapter around the tensors and submodules of an original, which does not change; or a class for it."""
    what = f"{path or 'model'}: expected {class_name(type(original))} as its library builds it"
    methods = [name for name in ("forward", *recipe.derived) if hasattr(type(original), name)]
    if (other := next((name for name in methods if name in vars(original)), None)) is not None:
        raise NotImplementedError(f"{what}, got one with another {other}")
    if (unknown := next(filter(_is_unknown_quantizer, original.modules()), None)) is not None:
        raise NotImplementedError(f"{what}, got one made of {class_name(type(unknown))}")
    submodule, _, name = recipe.adapter.partition(":")
    kind: type[nn.Module] = getattr(importlib.import_module(f"vqkernels.compat.{submodule}"), name)
    if recipe.derived:
        if (absent := next((name for name in recipe.derived if not _has(original, name)), None)) is not None:
            raise NotImplementedError(f"{what}, got one without {absent}")
        return kind
    options = {}
    for argument in sorted(_arguments(kind) | recipe.read.keys()):
        read = recipe.read.get(argument, attrgetter(argument))
        try:
            options[argument] = read(original)
        except (AttributeError, KeyError):
            raise NotImplementedError(f"{what}, got one that does not tell its {argument}") from None
    # initial values are drawn and thrown away
    with torch.random.fork_rng(devices=[]):
        try:
            adapter: nn.Module = kind(**options)
        except (TypeError, ValueError) as error:
            raise NotImplementedError(f"{what} and its adapter takes it, got {error}") from None
    with adapter.as_a_buffer() if isinstance(adapter, Unsent) else nullcontext():
        difference = _adopt(adapter, original)
    if difference is not None:
        raise NotImplementedError(f"{what}, got one with other {difference}")
    for attribute in recipe.carry:
        if hasattr(original, attribute):
            setattr(adapter, attribute, getattr(original, attribute))
    adapter.training = original.training
    return adapter


def _has(module: nn.Module, name: str) -> bool:
    # a property is not asked: what it makes, it may keep
    return hasattr(type(module), name) or hasattr(module, name)


def _arguments(kind: type) -> set[str]:
    """Names of the arguments that a constructor takes, including those it hands on to its base class."""
    names: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_POSITIONAL for p in parameters):
            break
    return names


def _adopt(adapter: nn.Module, original: nn.Module) -> str | None:
    """Give an adapter the tensors and submodules of an original; the names that do not fit, if any."""
    names = _state_names(original)
    unlike = (names - _state_names(adapter)) | (_state_names(adapter, saved=True) - names)
    own = vars(adapter)["_modules"]
    unlike |= {name for name, part in original.named_children() if part.state_dict() and name not in own}
    if unlike:
        return ", ".join(sorted(unlike))
    device = next((t.device for t in itertools.chain(original.parameters(), original.buffers())), None)
    options = vars(adapter)["_non_persistent_buffers_set"]
    for part in _PARTS:
        mine, theirs = vars(adapter)[part], vars(original)[part]
        mine.update((name, theirs[name]) for name in mine if name in theirs and name not in options)
    buffers = vars(adapter)["_buffers"]
    for name in options:
        # what is not saved was made of options, and here better than there
        if buffers[name] is not None:
            like = original._buffers.get(name)
            dtype = like.dtype if like is not None and like.is_floating_point() else None
            buffers[name] = buffers[name].to(device=device, dtype=dtype)
    return None


def _state_names(module: nn.Module, saved: bool = False) -> set[str]:
    """Names of parameters, and of buffers that are or can be saved; with ``saved`` without those that are None."""
    kinds = vars(module)
    buffers = {name: t for name, t in kinds["_buffers"].items() if name not in kinds["_non_persistent_buffers_set"]}
    return {
        f"{kind} {name}"
        for kind, tensors in (("parameter", kinds["_parameters"]), ("buffer", buffers))
        for name, tensor in tensors.items()
        if tensor is not None or not saved
    }


def _become(module: nn.Module, adapter: nn.Module | type[nn.Module]) -> None:
    """Make a module the adapter, without making it another object."""
    if isinstance(adapter, type):
        module.__class__ = adapter
        return
    mine, theirs = vars(adapter), vars(module)
    for name in _ABOUT:
        if isinstance(theirs[name], dict):
            # handles that remove hooks know the dictionary these are in
            theirs[name].update(mine[name])
        mine[name] = theirs[name]
    # what the library, or somebody else, keeps here besides
    own = {name for part in _PARTS for name in mine[part]}
    mine |= {name: value for name, value in theirs.items() if name not in mine and name not in own}
    module.__class__ = type(adapter)
    module.__dict__ = mine
