"""Published checkpoints of tokenizers: ``load("taming", file)`` gives the module.

K codes, D code dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from models.errors import UserError
from models.networks.vqgan import VQGANConfig
from models.published.reading import read_state_dict
from models.published.vqgan import STYLES, read_sizes, weight_names
from models.tokenizers import Tokenizer, build_tokenizer
from models.tokenizers.config import QuantizerConfig

__all__ = ["LAYOUTS", "Published", "load"]

LAYOUTS = tuple(STYLES)
_CODES = "quantize.embedding.weight"  # [K, D]


class Published(NamedTuple):
    """What a published file holds."""

    network: VQGANConfig
    quantizer: QuantizerConfig
    tokenizer: Tokenizer  # in eval mode


def load(layout: str, file: Path | str) -> Tokenizer:
    """The tokenizer in a published file, in eval mode.

    Args:
        layout: one of ``LAYOUTS``.
        file: state dict, or a checkpoint that holds one; ``.safetensors`` or what torch.save wrote.

    Raises:
        UserError: in one line, if the file cannot be read safely, or if a name or a shape is not the layout's.
    """
    return read(layout, file).tokenizer


def read(layout: str, file: Path | str) -> Published:
    """The same with its configs."""
    if layout not in STYLES:
        raise UserError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    style, path = STYLES[layout], Path(file)
    theirs = {
        name: tensor
        for name, tensor in read_state_dict(path, style.wrapped).items()
        if not name.startswith(style.ignored)
    }
    try:
        network = read_sizes(style, theirs)
        num_codes, code_dim = theirs[_CODES].shape
    except KeyError as error:
        raise UserError(f"{path}: not a file of layout {layout} (no {error.args[0]})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a file of layout {layout} ({error})") from error
    # of training: VQGAN's term for the encoder weighs 1 and that for the codes 0.25
    quantizer = QuantizerConfig(
        codebook="learned",
        num_codes=num_codes,
        code_dim=code_dim,
        metric=style.metric,
        commitment_weight=1.0,
        codebook_weight=0.25,
    )
    names = weight_names(style, network)
    if wrong := sorted({*names.values(), _CODES} ^ set(theirs)):
        what = "lacks" if wrong[0] not in theirs else "has unknown"
        raise UserError(f"{path}: not a file of layout {layout}: {what} {wrong[0]} ({len(wrong)} names differ)")
    tokenizer = build_tokenizer(network, quantizer)
    with torch.no_grad():
        own = tokenizer.state_dict()
        for ours, name in names.items():
            _copy(own[ours], theirs[name], f"{path}: {name}")
        _copy(own["quantizer.table.weight"], theirs[_CODES][None], f"{path}: {_CODES}")
    return Published(network, quantizer, tokenizer.eval())


def _copy(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    if theirs.dim() == 2 and ours.dim() == 4:
        theirs = theirs[:, :, None, None]  # a linear layer over positions is a 1x1 convolution
    if ours.shape != theirs.shape:
        raise UserError(f"{name}: expected shape {list(ours.shape)}, got {list(theirs.shape)}")
    ours.copy_(theirs)
