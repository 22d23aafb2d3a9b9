"""What a run of the command leaves on disk: after each iteration its state, at the end the centroids."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqkernels.kmeans.files import open_rows, read_metadata, save_safetensors, save_whole
from vqkernels.kmeans.lloyd import KMeansResult, State


def save_state(path: Path, state: State, run: Mapping[str, Any]) -> None:
    """Write a state and what it belongs to: centroids, and the rest as text that keeps every bit of a float."""
    rest = json.dumps({"history": state.history, "spread": state.spread, "settled": state.settled, "run": run})
    save_safetensors(path, {"centroids": state.centroids}, {"state": rest})


def load_state(path: Path, run: Mapping[str, Any]) -> State:
    """Read a state.

    Raises:
        ValueError: if the file is no checkpoint, or one of another run, naming what differs.
    """
    try:
        file = open_rows(path, "centroids")
        state, of = _read_state(file.read(0, file.rows), read_metadata(path).get("state"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a k-means checkpoint, got something else ({error})") from error
    for name, value in run.items():
        if of.get(name) != value:
            raise ValueError(f"{path}: expected a run with {name}={value!r}, got {of.get(name)!r}")
    return state


def _read_state(centroids: torch.Tensor, text: object) -> tuple[State, dict[str, Any]]:
    """A state, and the run that it belongs to."""
    try:
        rest = json.loads(text) if isinstance(text, str) else None
    except RecursionError:
        rest = None
    if not isinstance(rest, dict):
        raise ValueError("no state beside the centroids")
    history, spread, settled, run = (rest.get(name) for name in ("history", "spread", "settled", "run"))
    if not (
        isinstance(history, list)
        and all(isinstance(number, float) for number in (*history, 0.0 if spread is None else spread))
        and isinstance(settled, bool)
        and isinstance(run, dict)
    ):
        raise ValueError("a state of other types")
    if list(centroids.shape) != [run.get("k"), run.get("dim")] or not bool(centroids.isfinite().all()):
        raise ValueError(f"centroids {list(centroids.shape)} that are not finite, or not those of its run")
    return State(centroids.float(), tuple(history), spread, settled), run


def save_result(path: Path, result: KMeansResult, summary: Mapping[str, Any]) -> None:
    """Write centroids (and, in safetensors, the weight of each), the summary beside them, and a plot."""
    if path.suffix == ".npy":
        save_whole(path, lambda file: np.save(file, result.centroids.cpu().numpy()))
    else:
        tensors = {"centroids": result.centroids, "count": result.count}
        save_safetensors(path, tensors, {"metric": str(summary["metric"])})
    text = json.dumps(summary, indent=1) + "\n"
    save_whole(summary_path(path), lambda file: file.write(text.encode()))


def summary_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def plot(path: Path, history: list[float]) -> str:
    """Draw the inertia of each iteration; returns why not, or the empty string."""
    if importlib.util.find_spec("matplotlib") is None:
        return "package matplotlib is not installed"
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(history)), history, marker=".")
    axes.set(xlabel="iteration", ylabel="inertia")
    save_whole(path, lambda file: figure.savefig(file, format="png"))
    return ""
