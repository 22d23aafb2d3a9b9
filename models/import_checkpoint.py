"""Published checkpoints as run folders: ``python -m models.import_checkpoint LAYOUT FILE --out RUN``.

Every command takes the folder: ``models.evaluate RUN``, ``models.train_tokenizer RECIPE --start RUN``, and so on. A
prior is sampled with the tokenizer that ``--tokenizer`` names.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from models import command
from models.errors import UserError
from models.published import PublishedPrior, PublishedTokenizer, Untold, read
from models.tokenizers.fingerprint import fingerprint
from models.training.checkpoint import save_checkpoint, save_config
from models.training.config import RunConfig
from models.training.optimizers import build_optimizer
from models.training.prior_data import UNKNOWN
from models.training.prior_run import CodeInfo, PriorRun
from models.training.runs import load_codec
from models.training.tokenizer_run import TokenizerRun, TokenizerStage


def import_checkpoint(
    layout: str,
    file: Path | str,
    out: Path | str,
    *,
    tokenizer: Path | str | None = None,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
) -> TokenizerRun | PriorRun:
    """Make a run folder of a published file: its weights are those after 0 steps. Arguments as of :func:`main`."""
    folder = Path(out)
    if (folder / "config.json").exists():
        raise UserError(f"{folder}: already holds a run; choose another --out")
    published = read(layout, file, Untold(heads=heads, grid=grid))
    if isinstance(published, PublishedTokenizer):
        for name, value in (("tokenizer", tokenizer), ("heads", heads), ("grid", grid)):
            if value is not None:
                raise UserError(f"{name}: expected none for a tokenizer, got {value}")
        run: TokenizerRun | PriorRun = TokenizerRun(
            recipe=f"imported_{layout}",
            network=published.network,
            quantizer=published.quantizer,
            stage=TokenizerStage(image_size=256, crop="resize"),
        )
    else:
        run = _prior_run(layout, published, tokenizer)
    _save(folder, run, published.module)
    return run


def _prior_run(layout: str, published: PublishedPrior, tokenizer: Path | str | None) -> PriorRun:
    codes = published.codes
    latents = not codes.num_codes
    info = CodeInfo(
        tokenizer=UNKNOWN,
        num_codes=codes.num_codes,
        groups=1,
        code_dim=codes.code_dim,
        shape=(codes.code_dim, *codes.grid) if latents else codes.grid,
        labels=tuple(map(str, range(codes.num_classes))),
    )
    if tokenizer is not None:
        info = _described(info, tokenizer, latents=latents)
    return PriorRun(
        recipe=f"imported_{layout}",
        data="latents:latents" if latents else "codes:codes",
        prior=published.prior,
        latent_scale=1.0 if latents else None,
        codes=info,
    )


def _described(info: CodeInfo, tokenizer: Path | str, *, latents: bool) -> CodeInfo:
    """The same codes, known to be those of a tokenizer."""
    codec = load_codec(tokenizer)
    num_codes, groups, code_dim = codec.table
    expected, got = (info.code_dim, code_dim) if latents else ((info.num_codes, 1), (num_codes, groups))
    if expected != got:
        what = "latent channels" if latents else "codes and groups"
        raise UserError(f"tokenizer: expected {expected} {what} as the prior has, got {got} in {tokenizer}")
    return replace(
        info, tokenizer=fingerprint(codec.tokenizer), num_codes=num_codes, groups=groups, code_dim=code_dim
    )


def _save(folder: Path, run: RunConfig, module: nn.Module) -> None:
    optimizer = build_optimizer(module, run.stages[0].optimizer)
    state = {"optimizers": {"model": optimizer.state_dict()}, "modules": {}}
    save_checkpoint(folder, 0, module.state_dict(), state)
    save_config(folder, run)


def main(
    layout: Annotated[str, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    tokenizer: Path | None = None,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
) -> None:
    """Make a run folder of a published checkpoint.

    Args:
        layout: of tokenizers taming, llamagen_vq, diffusers_vq, vqgan_lc or mgvq; of priors llamagen_gpt, dit or sit.
        file: the checkpoint.
        out: run folder.
        tokenizer: run folder of the tokenizer whose codes or latents a prior knows; models.sample needs it.
        heads: attention heads of a prior, if it has not the width of a published one.
        grid: rows and columns of codes that llamagen_gpt makes; 16 16 by default.
    """
    run = import_checkpoint(layout, file, out, tokenizer=tokenizer, heads=heads, grid=grid)
    if isinstance(run, TokenizerRun):
        print(f"{out}: {run.quantizer.num_codes} codes, {run.network.downsample} pixels per side of a token")
    else:
        shape = run.shape
        print(f"{out}: {shape.num_classes} classes, {shape.grid[0]} x {shape.grid[1]} cells")


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main, prog="python -m models.import_checkpoint")))
