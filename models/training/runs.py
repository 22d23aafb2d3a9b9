"""The kinds of runs, and their configs out of run folders."""

from __future__ import annotations

from pathlib import Path

from models.config_json import parse
from models.errors import UserError
from models.training.checkpoint import first_line, read_config
from models.training.tokenizer_run import TokenizerRun, upgraded

AnyRun = TokenizerRun
_KINDS = {"tokenizer": TokenizerRun}


def load_config(run_dir: Path | str) -> AnyRun:
    """The config a run was started with."""
    content = read_config(run_dir)
    path = Path(run_dir) / "config.json"
    try:
        content = upgraded(content)
        kind = content.get("kind")
        if kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
        config: AnyRun = parse(_KINDS[kind], content, "config")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a training config ({first_line(error)})") from error
    return config
