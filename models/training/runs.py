"""The kinds of runs; configs and models out of run folders."""

from __future__ import annotations

from pathlib import Path

from models.config_json import parse
from models.errors import UserError, first_line
from models.networks.token_classifier import TokenClassifier
from models.tokenizers import Tokenizer
from models.tokenizers.codec import Codec
from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.latent_space import (
    AutoencoderSpace,
    AutoencoderSpaceConfig,
    LatentSpace,
    PatchSpace,
    PatchSpaceConfig,
    TokenizerSpace,
)
from models.training.checkpoint import find_checkpoint, read_config, read_weights
from models.training.classifier_run import ClassifierRun, rebuild_classifier
from models.training.concept_run import ConceptRun, rebuild_concepts
from models.training.prior_run import Prior, PriorRun, rebuild_prior
from models.training.tokenizer_run import TokenizerRun, rebuild_tokenizer, upgraded

AnyRun = TokenizerRun | ConceptRun | PriorRun | ClassifierRun
_KINDS: dict[str, type[AnyRun]] = {
    "tokenizer": TokenizerRun,
    "concept": ConceptRun,
    "prior": PriorRun,
    "classifier": ClassifierRun,
}


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


def load_tokenizer(run_dir: Path | str, *, step: int | None = None, mean: bool = True) -> Tokenizer:
    """The tokenizer of a run, in eval mode.

    Args:
        run_dir: a run folder.
        step: steps after which it was saved; None takes the newest checkpoint.
        mean: the running mean of its weights, where the run kept one.
    """
    config = load_config(run_dir)
    if not isinstance(config, TokenizerRun):
        raise UserError(f"{run_dir}: expected the run of a tokenizer, got that of a {config.kind}")
    folder = find_checkpoint(run_dir, step)
    stage = config.stage_at(max(1, int(folder.name.removeprefix("step_"))))
    return rebuild_tokenizer(config, stage, read_weights(folder, mean=mean), folder).eval()


def load_prior_config(run_dir: Path | str) -> PriorRun:
    """The config of the run of a prior, and of nothing else."""
    config = load_config(run_dir)
    if not isinstance(config, PriorRun):
        raise UserError(f"{run_dir}: expected the run of a prior, got that of a {config.kind}")
    return config


def load_prior(run_dir: Path | str, *, step: int | None = None, mean: bool = True) -> Prior:
    """The prior of a run, in eval mode; arguments as of :func:`load_tokenizer`."""
    config, folder = load_prior_config(run_dir), find_checkpoint(run_dir, step)
    return rebuild_prior(config, read_weights(folder, mean=mean), folder).eval()


def load_classifier_config(run_dir: Path | str) -> ClassifierRun:
    """The config of the run of a classifier, and of nothing else."""
    config = load_config(run_dir)
    if not isinstance(config, ClassifierRun):
        raise UserError(f"{run_dir}: expected the run of a classifier, got that of a {config.kind}")
    return config


def load_classifier(run_dir: Path | str, *, step: int | None = None, mean: bool = True) -> TokenClassifier:
    """The classifier of a run, in eval mode; arguments as of :func:`load_tokenizer`."""
    config, folder = load_classifier_config(run_dir), find_checkpoint(run_dir, step)
    return rebuild_classifier(config, read_weights(folder, mean=mean), folder).eval()


def load_concepts(run_dir: Path | str, *, step: int | None = None, mean: bool = True) -> ConceptTokenizer:
    """The concept tokenizer of a run, in eval mode; arguments are those of :func:`load_tokenizer`."""
    config = load_config(run_dir)
    if not isinstance(config, ConceptRun):
        raise UserError(f"{run_dir}: expected the run of a concept tokenizer, got that of a {config.kind}")
    folder = find_checkpoint(run_dir, step)
    stage = config.stage_at(max(1, int(folder.name.removeprefix("step_"))))
    return rebuild_concepts(config, stage, read_weights(folder, mean=mean), folder, open_space(config)).eval()


def load_codec(run_dir: Path | str) -> Codec:
    """The tokenizer of a run, of grids or of concepts, in eval mode."""
    concepts = isinstance(load_config(run_dir), ConceptRun)
    return Codec(load_concepts(run_dir) if concepts else load_tokenizer(run_dir))


def open_space(config: ConceptRun) -> LatentSpace:
    """The latents that a diffusion decoder works in; the frozen networks behind them are read here."""
    space = config.space
    if isinstance(space, PatchSpaceConfig):
        return PatchSpace(space)
    if isinstance(space, AutoencoderSpaceConfig):
        return AutoencoderSpace(space)
    return TokenizerSpace(load_tokenizer(space.run), space.scale)
