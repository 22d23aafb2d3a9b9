"""Published checkpoints as run folders: ``python -m models.import_checkpoint LAYOUT FILE --out RUN``.

Every command takes the folder: ``models.evaluate RUN``, ``models.train_tokenizer RECIPE --start RUN``, and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from models import command
from models.errors import UserError
from models.published import read
from models.training.checkpoint import save_checkpoint, save_config
from models.training.optimizers import build_optimizer
from models.training.tokenizer_run import TokenizerRun, TokenizerStage


def import_checkpoint(layout: str, file: Path | str, out: Path | str) -> TokenizerRun:
    """Make a run folder of a published file: its weights are those after 0 steps."""
    folder = Path(out)
    if (folder / "config.json").exists():
        raise UserError(f"{folder}: already holds a run; choose another --out")
    published = read(layout, file)
    config = TokenizerRun(
        recipe=f"imported_{layout}",
        network=published.network,
        quantizer=published.quantizer,
        stage=TokenizerStage(image_size=256, crop="resize"),
    )
    optimizer = build_optimizer(published.tokenizer, config.stage.optimizer)
    state = {"optimizers": {"model": optimizer.state_dict()}, "modules": {}}
    save_checkpoint(folder, 0, published.tokenizer.state_dict(), state)
    save_config(folder, config)
    return config


def main(
    layout: Annotated[str, tyro.conf.Positional], file: Annotated[Path, tyro.conf.Positional], *, out: Path
) -> None:
    """Make a run folder of a published checkpoint.

    Args:
        layout: taming, llamagen_vq or diffusers_vq.
        file: the checkpoint.
        out: run folder.
    """
    config = import_checkpoint(layout, file, out)
    print(f"{out}: {config.quantizer.num_codes} codes, {config.network.downsample} pixels per side of a token")


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main, prog="python -m models.import_checkpoint")))
