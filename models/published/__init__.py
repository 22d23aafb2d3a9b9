"""Published checkpoints of tokenizers and priors: ``load("taming", file)`` gives the module."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from models.errors import UserError
from models.published import dit, llamagen_gpt, mgvq, vqgan
from models.published.layout import Layout, Published, PublishedPrior, PublishedTokenizer, Untold
from models.published.reading import fill, read_state_dict

__all__ = ["LAYOUTS", "Published", "PublishedPrior", "PublishedTokenizer", "Untold", "load", "read"]

LAYOUTS: dict[str, Layout] = {
    **vqgan.LAYOUTS,
    "mgvq": mgvq.LAYOUT,
    "llamagen_gpt": llamagen_gpt.LAYOUT,
    **dit.LAYOUTS,
}


def load(layout: str, file: Path | str, untold: Untold | None = None) -> nn.Module:
    """The tokenizer or prior in a published file, in eval mode.

    Args:
        layout: one of ``LAYOUTS``.
        file: state dict, or a checkpoint that holds one; ``.safetensors`` or what torch.save wrote.
        untold: what no shape of a prior's file tells.

    Raises:
        UserError: in one line, if the file cannot be read safely, or if a name or a shape is not the layout's.
    """
    return read(layout, file, untold).module


def read(layout: str, file: Path | str, untold: Untold | None = None) -> Published:
    """The same with its configs."""
    if layout not in LAYOUTS:
        raise UserError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    wrapped, ignored, read_layout = LAYOUTS[layout]
    path = Path(file)
    weights = {
        name: tensor for name, tensor in read_state_dict(path, wrapped).items() if not name.startswith(ignored)
    }
    source = f"{path}: not a file of layout {layout}"
    try:
        published, names = read_layout(weights, Untold() if untold is None else untold)
    except KeyError as error:
        raise UserError(f"{source} (no {error.args[0]})") from error
    except ValueError as error:
        raise UserError(f"{source} ({error})") from error
    fill(published.module, names, weights, source)
    published.module.eval()
    return published
