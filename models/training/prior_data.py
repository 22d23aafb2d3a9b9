"""Codes and latents as a prior's data: what they are, that they are those of one tokenizer, how they reach the prior.

B batch, D code dimension, h w grid, G groups, K codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from models.data.codes import CodeSource, Manifest
from models.data.sample import Sample
from models.data.source import open_source
from models.data.transforms import Arrays, DrawView
from models.errors import UserError, check_file, first_line
from models.networks.code_embedding import CodeVectors
from models.tokenizers.fingerprint import fingerprint
from models.training.prior_run import CodeInfo, PriorRun
from models.training.runs import load_codec, load_prior_config

CODEBOOK = "codebook.safetensors"  # beside the codes, written after them
UNKNOWN = ""  # tokenizer of a prior that was imported without one
_SPREAD_SAMPLES = 256  # latents whose spread is measured


@dataclass(frozen=True, kw_only=True)
class CheckedView:
    """One view of a sample, drawn; codes and classes that there cannot be are an error."""

    num_codes: int
    num_classes: int

    def __call__(self, sample: Sample, random: np.random.Generator) -> Arrays | None:
        values, label = sample.image, sample.label
        if values.dtype.kind != "f" and not 0 <= values.min() <= values.max() < self.num_codes:
            expected = f"codes from 0 to {self.num_codes - 1}"
            raise UserError(f"data: {sample.name}: expected {expected}, got {values.min()} to {values.max()}")
        if label is not None and not 0 <= label < self.num_classes:
            raise UserError(f"data: {sample.name}: expected a class from 0 to {self.num_classes - 1}, got {label}")
        return DrawView()(sample, random)


def code_settings(num_codes: int, groups: int, code_dim: int) -> dict[str, Any]:
    """What a manifest says of the codes beside their number."""
    return {"num_codes": num_codes, "groups": groups, "code_dim": code_dim}


def describe(manifest: Manifest, folder: Path) -> CodeInfo:
    """What a manifest says that a prior needs."""
    settings = manifest.settings
    try:
        info = CodeInfo(
            tokenizer=manifest.tokenizer,
            num_codes=int(settings["num_codes"]),
            groups=int(settings["groups"]),
            code_dim=int(settings["code_dim"]),
            shape=manifest.shape,
            labels=manifest.labels,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not made by models.extract_codes (settings lack {first_line(error)})") from error
    if manifest.num_codes not in (None, info.num_codes):
        raise UserError(f"{folder}: expected one number of codes, got {manifest.num_codes} and {info.num_codes}")
    return info


def describe_data(config: PriorRun) -> PriorRun:
    """The same training, saying what its data are; raises where prior, tokenizer and data do not belong together."""
    kind = "latents" if config.of_latents else "codes"
    if not config.data.startswith(f"{kind}:"):
        raise UserError(
            f"data: expected '{kind}:DIR' for a prior of the kind '{config.prior.kind}', got '{config.data}'"
        )
    info = describe_both(config.data)
    if config.tokenizer is not None:
        check_tokenizer(config.tokenizer, info, config.data)
    for stage in config.stages:
        if stage.start not in ("previous", "fresh"):
            check_same(load_prior_config(stage.start).codes, stage.start, info, config.data)
    scale = config.latent_scale
    if kind == "latents" and scale is None:
        scale = 1 / _spread(open_codes(config.data, "train"))
    return dataclasses.replace(config, codes=info, latent_scale=scale)


def describe_both(data: str) -> CodeInfo:
    """What the codes or latents of both sides are; those of two tokenizers are an error."""
    source, held_out = open_codes(data, "train"), open_codes(data, "val")
    info = describe(source.manifest, source.folder)
    if describe(held_out.manifest, held_out.folder) != info:
        raise UserError(f"{held_out.folder}: codes of another tokenizer or shape than those in {source.folder}")
    return info


def open_codes(spec: str, split: Any) -> CodeSource:
    """One side of a folder of codes or latents."""
    source = open_source(spec, split)
    if not isinstance(source, CodeSource):
        raise UserError(f"data: expected 'codes:DIR' or 'latents:DIR', got '{spec}'")
    return source


def check_tokenizer(run_dir: str | Path, info: CodeInfo, what: str | Path) -> None:
    """Raise unless the codes ``info`` speaks of are those of the tokenizer in ``run_dir``."""
    if info.tokenizer == UNKNOWN:
        raise UserError(f"{what}: imported without a tokenizer; import it again with --tokenizer {run_dir}")
    codec = load_codec(run_dir)
    num_codes, groups, _ = codec.table
    if (num_codes, groups) != (info.num_codes, info.groups):
        raise UserError(
            f"{what}: codes of another tokenizer: expected {num_codes} codes in {groups} groups as in {run_dir}, "
            f"got {info.num_codes} in {info.groups}"
        )
    expected = fingerprint(codec.tokenizer)
    if expected != info.tokenizer:
        raise UserError(
            f"{what}: codes of another tokenizer: expected those of {run_dir} ({expected}), got {info.tokenizer}"
        )


def check_same(before: CodeInfo | None, run_dir: str | Path, info: CodeInfo, data: str) -> None:
    """Raise unless ``before``, what a run was trained on, is of the tokenizer that ``info`` speaks of."""
    assert before is not None
    if before.tokenizer == UNKNOWN:
        raise UserError(f"{run_dir}: imported without a tokenizer; import it again with --tokenizer RUN")
    if before.tokenizer != info.tokenizer:
        raise UserError(
            f"{data}: codes of another tokenizer: {run_dir} was trained on those of {before.tokenizer}, "
            f"these are of {info.tokenizer}"
        )


def set_code_vectors(prior: nn.Module, config: PriorRun) -> None:
    """Give a prior that reads the vectors of codes those of its data."""
    for module in prior.modules():
        if isinstance(module, CodeVectors):
            module.set_codes(read_codebook(config.data))


def write_codebook(folder: Path, codebook: np.ndarray) -> None:  # [G, K, D/G]
    """Put the vectors of the codes beside the codes, for priors that read them; left alone if it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / CODEBOOK, safetensors.numpy.save({"codebook": np.ascontiguousarray(codebook)})
    if path.exists() and path.read_bytes() == content:
        return
    partial = folder / f".{CODEBOOK}.partial"
    partial.write_bytes(content)
    partial.replace(path)


def read_codebook(data: str) -> torch.Tensor:  # [G, K, D/G] float32
    """The vectors of the codes in the folder of "codes:DIR"."""
    path = Path(data.partition(":")[2]) / CODEBOOK
    check_file(path)
    try:
        codebook = safetensors.torch.load_file(path)["codebook"]
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path}: missing, truncated or not a codebook ({first_line(error)})") from error
    if codebook.dim() != 3 or not codebook.is_floating_point():
        raise UserError(f"{path}: expected floats of shape [G, K, D], got {codebook.dtype} {list(codebook.shape)}")
    return codebook.float()


def scaled_latents(config: PriorRun, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the prior sees them: [B, D, h, w], or for a prior of sequences [B, T, D]."""
    assert config.latent_scale is not None
    scaled = latents * config.latent_scale
    return scaled.flatten(2).mT if config.prior.kind == "concept" and scaled.ndim == 4 else scaled


def unscaled_latents(config: PriorRun, values: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`scaled_latents`."""
    assert config.latent_scale is not None
    assert config.codes is not None
    latents = values / config.latent_scale
    if config.prior.kind == "concept" and len(config.codes.shape) == 3:
        return latents.mT.unflatten(2, config.codes.shape[1:])
    return latents


def _spread(source: CodeSource) -> float:
    """Standard deviation of latents, of all channels together."""
    values = [source.read(i).image[0].astype(np.float64) for i in range(min(len(source), _SPREAD_SAMPLES))]
    spread = float(np.stack(values).std())
    if not spread > 0:
        raise UserError("latents: expected some that differ, got one value in all of them")
    return spread
