"""What a run of the command leaves on disk: after each iteration its state, at the end the centroids."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqkernels.kmeans.files import SUFFIXES, names_in, open_rows, read_metadata, save_safetensors, save_whole
from vqkernels.kmeans.lloyd import KMeansResult, State
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.seeding import INITS, given_init


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


def save_results(path: Path, results: Sequence[KMeansResult], summary: Mapping[str, Any]) -> None:
    """Write the centroids of each level (and, in safetensors, the weight of each), and the summary beside them."""
    if path.suffix == ".npy":
        levels = np.stack([result.centroids.cpu().numpy() for result in results])
        save_whole(path, lambda file: np.save(file, levels if len(levels) > 1 else levels[0]))
    else:
        tensors: dict[str, torch.Tensor] = {}
        for level, result in enumerate(results):
            ending = f".{level}" if len(results) > 1 else ""
            tensors |= {f"centroids{ending}": result.centroids, f"count{ending}": result.count}
        save_safetensors(path, tensors, {"metric": str(summary["metric"])})
    text = json.dumps(summary, indent=1) + "\n"
    save_whole(summary_path(path), lambda file: file.write(text.encode()))


def load_init(path: Path, levels: int) -> list[torch.Tensor]:  # [K, D] each
    """The centroids to start every level from: a file of this command, or of any rows ``[K, D]`` for one level.

    Raises:
        ValueError: if it is none.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"--init: expected {', '.join(INITS)} or a file ending in {' or '.join(SUFFIXES)}, got {path}"
        )
    if levels > 1 and path.suffix == ".npy":
        stacked = np.load(path, allow_pickle=False)
        if stacked.ndim != 3 or len(stacked) != levels or stacked.dtype.kind != "f":
            raise ValueError(
                f"{path}: expected centroids [{levels}, K, D], got {stacked.dtype} {list(stacked.shape)}"
            )
        given = [torch.from_numpy(level.astype(np.float64)) for level in stacked]
    else:
        keys = [f"centroids.{level}" for level in range(levels)] if levels > 1 else [_only_key(path)]
        files = [open_rows(path, key) for key in keys]
        given = [file.read(0, file.rows) for file in files]
    return [level for level in map(given_init, given) if isinstance(level, torch.Tensor)]


def _only_key(path: Path) -> str | None:
    """The name of the centroids in a file of this command; None where there is but one tensor."""
    return "centroids" if path.suffix == ".safetensors" and "centroids" in names_in(path) else None


def save_labels(path: Path, labels: Sequence[torch.Tensor], rows: int, processes: Processes) -> None:
    """Write the labels ``[N]`` of each level, those of all processes by rank, as ``[N]`` or ``[N, L]`` int64."""
    mine = torch.stack(list(labels), dim=1).cpu()
    lengths = processes.of_each(len(mine), labels[0].device)
    first = sum(lengths[: processes.rank])
    shape = (rows, len(labels)) if len(labels) > 1 else (rows,)
    partial = path.with_name(f".{path.name}.partial.npy")
    if processes.rank == 0:
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.int64, shape=shape).flush()
    processes.of_each(0, labels[0].device)  # there it is
    if len(mine):
        file = np.lib.format.open_memmap(partial, mode="r+")
        file[first : first + len(mine)] = mine.reshape(-1, *shape[1:]).numpy()
        file.flush()
    processes.of_each(0, labels[0].device)  # all have written
    if processes.rank == 0:
        partial.replace(path)


def summary_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def plot(path: Path, histories: Sequence[list[float]]) -> str:
    """Draw the inertia of each iteration, a line for each level; returns why not, or the empty string."""
    if importlib.util.find_spec("matplotlib") is None:
        return "package matplotlib is not installed"
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for history in histories:
        axes.plot(range(len(history)), history, marker=".")
    axes.set(xlabel="iteration", ylabel="inertia")
    save_whole(path, lambda file: figure.savefig(file, format="png"))
    return ""
