"""``python -m vqkernels.kmeans FEATURES --k K --out FILE``: a codebook from files, in bounded memory."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from vqkernels.kmeans.api import METRICS, check_arguments
from vqkernels.kmeans.balanced import balanced
from vqkernels.kmeans.checkpoint import (
    load_init,
    load_state,
    plot,
    save_labels,
    save_results,
    save_state,
    summary_path,
)
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.files import RowsFile
from vqkernels.kmeans.lloyd import KMeansResult, State, lloyd
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.progress import Progress
from vqkernels.kmeans.residual import Left, labels_of
from vqkernels.kmeans.seeding import INITS, start, too_many
from vqkernels.kmeans.source import FileRows, find_files

_LONGEST = 299  # characters of an error
_LEFT_OUT = {"l2": "not finite, or longer than 2^62", "cosine": "not finite, or zero"}

_EPILOG = """\
FEATURES is a .npy or .safetensors file of rows [N, D], or a folder of them. Rows that are not finite, or too long for
float32 to hold their squared distances, are left out and counted. Started by torchrun, every process takes an equal
part of the rows; the result is the same bits.

A checkpoint is written after each iteration; a run that was killed goes on with --resume, to the same bits (not with
--balanced, which holds the rows in memory and starts over). At the end FILE holds the centroids, FILE.json the
summary that is also printed, FILE.png the inertia over iterations.

With --levels L every level clusters what the ones before left of the rows. FILE then holds centroids [L, K, D] (.npy)
or centroids.0, centroids.1, ... [K, D] (.safetensors), and the summary has a list with an entry for each level.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    distributed = "WORLD_SIZE" in os.environ
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device: expected cpu where torch finds no CUDA device, got cuda")
        if distributed:
            dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        _run(args, Processes(dist.group.WORLD if distributed else None))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError, dist.DistError) as error:
        return _fail(f"error: {error or type(error).__name__}", 2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _run(args: argparse.Namespace, processes: Processes) -> None:
    began = time.perf_counter()

    def say(text: str) -> None:
        if processes.rank == 0 and not args.quiet:
            sys.stderr.write(text + "\n")

    out = Path(args.out)
    if out.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"--out: expected a name ending in .npy or .safetensors, got {args.out!r}")
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise ValueError(f"--out: expected a file in an existing folder, got {args.out!r}")
    labels_out = None if args.labels is None else Path(args.labels)
    if labels_out is not None and (labels_out.suffix != ".npy" or not labels_out.parent.is_dir()):
        raise ValueError(f"--labels: expected a name ending in .npy in an existing folder, got {args.labels!r}")
    if args.levels < 1 or (args.levels > 1 and args.metric != "l2"):
        raise ValueError(f"--levels: expected 1 or, with the metric l2, more, got {args.levels} with {args.metric}")
    if args.balanced is not None and (args.resume or not args.balanced >= 1):
        raise ValueError(f"--balanced: expected a number >= 1, and no --resume, got {args.balanced:g}")
    checkpoint = out.with_name(out.name + ".checkpoint")
    if args.resume and not checkpoint.exists() and out.exists() and summary_path(out).exists():
        say(f"{out} is finished; nothing to resume")
        return
    if checkpoint.exists() and not args.resume:
        raise ValueError(f"{checkpoint}: a run was cut off here; go on with --resume, or delete this file")
    check_arguments(args.k, args.metric, args.max_iter, args.tol, args.seed)
    files = find_files(Path(args.features), args.key)
    init = args.init if args.init in INITS else load_init(Path(args.init), args.levels)
    left = Left(FileRows(share(files, processes.rank, processes.size), args.device))
    chosen = {"k": args.k, "metric": args.metric, "init": args.init, "seed": args.seed, "tol": args.tol}
    results, checkpoints = [], []
    for level in range(args.levels):
        data = Data(left, None, args.metric, None, processes)
        if data.left_out and not level:
            say(f"{args.features}: left out {data.left_out} rows that are {_LEFT_OUT[args.metric]}")
        if args.k > data.total:
            raise too_many(args.k, data.total, "usable")
        run = {**chosen, "rows": data.total, "dim": data.dim}
        checkpoints.append(checkpoint.with_name(checkpoint.name + (f".{level}" if level else "")))
        begin = init if isinstance(init, str) else init[level].to(data.device)
        results.append(_iterate(args, data, begin, checkpoints[-1], run | ({"level": level} if level else {})))
        if labels_out is not None or level < args.levels - 1:
            found = results[-1].centroids
            options = {"metric": args.metric, "max_share": args.balanced, "group": processes.group}
            left = left.less(found, labels_of(left, found, **options))
    if labels_out is not None:
        save_labels(labels_out, left.labels, sum(file.rows for file in files), processes)
    if processes.rank:
        return
    seconds = time.perf_counter() - began
    summary = _summary(args, data, results, run, seconds, processes.size)
    save_results(out, results, summary)
    if reason := plot(out.with_name(out.name + ".png"), [result.history for result in results]):
        say(f"no plot: {reason}")
    for path in checkpoints:
        path.unlink(missing_ok=True)
    if not args.quiet:
        sys.stdout.write(json.dumps(summary) + "\n")


def _iterate(
    args: argparse.Namespace, data: Data, init: str | torch.Tensor, checkpoint: Path, run: dict[str, Any]
) -> KMeansResult:
    first = data.processes.rank == 0

    def keep(state: State) -> None:
        if first and args.balanced is None:
            save_state(checkpoint, state, run)

    if args.resume and checkpoint.exists():
        state = load_state(checkpoint, run)
        state = state._replace(centroids=state.centroids.to(data.device))
    else:
        state = State(start(data, args.k, init, args.seed))
        keep(state)
    with Progress(data.total, args.max_iter, shown=first and not args.quiet, done=len(state.history)) as bar:
        if args.balanced is not None:
            return balanced(data, state, args.balanced, max_iter=args.max_iter, tol=args.tol, callbacks=[bar])
        return lloyd(data, state, max_iter=args.max_iter, tol=args.tol, callbacks=[bar], on_state=keep)


def share(files: Sequence[RowsFile], rank: int, processes: int) -> tuple[RowsFile, ...]:
    """The part of the rows of all files, one after the other, that a process takes."""
    total = sum(file.rows for file in files)
    low, high = total * rank // processes, total * (rank + 1) // processes
    parts, begin = [], 0
    for file in files:
        start, stop = max(low - begin, 0), min(high - begin, file.rows)
        if start < stop:
            parts.append(file.part(start, stop))
        begin += file.rows
    return tuple(parts)


def _summary(
    args: argparse.Namespace,
    data: Data,
    results: Sequence[KMeansResult],
    run: dict[str, Any],
    seconds: float,
    processes: int,
) -> dict[str, Any]:
    found: dict[str, list[Any]] = {
        "iterations": [result.iterations for result in results],
        "inertia": [result.inertia for result in results],
        "empty": [int((result.count == 0).sum()) for result in results],
        "history": [result.history for result in results],
        "sizes": [[int(result.count.min()), int(result.count.max())] for result in results],
    }
    return {
        "features": args.features,
        "out": args.out,
        **run,
        "left_out": data.left_out,
        "levels": args.levels,
        "balanced": args.balanced,
        "labels": args.labels,
        **{name: values if args.levels > 1 else values[0] for name, values in found.items()},
        "seconds": round(seconds, 3),
        "processes": processes,
        "device": args.device,
        "threads": torch.get_num_threads(),
    }


def _fail(text: str, code: int) -> int:
    line = " ".join(text.split())
    sys.stderr.write((line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "...") + "\n")
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_fail(f"error: {message}", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m vqkernels.kmeans",
        description="Cluster rows in files by exact k-means, in bounded memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("features", metavar="FEATURES", help="file or folder of rows")
    parser.add_argument("--k", type=int, required=True, help="number of centroids")
    parser.add_argument("--out", metavar="FILE", required=True, help="where to: FILE.safetensors or FILE.npy")
    parser.add_argument("--metric", choices=METRICS, default="l2", help="default %(default)s")
    parser.add_argument(
        "--levels", type=int, default=1, metavar="L", help="k-means in L levels (default %(default)s)"
    )
    parser.add_argument(
        "--balanced",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SHARE",
        help="bound the rows of a cluster to SHARE (by itself 1) times the even share",
    )
    parser.add_argument("--labels", metavar="OUT", help="write the cluster of every row, -1 if left out, to OUT.npy")
    parser.add_argument(
        "--init",
        metavar="INIT",
        default="k-means++",
        help=f"{', '.join(INITS)}, or a file with the centroids to start from (default %(default)s)",
    )
    parser.add_argument("--max-iter", type=int, default=25, help="most iterations (default %(default)s)")
    parser.add_argument("--tol", type=float, default=1e-4, help="when to stop before (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--key", metavar="NAME", help="tensor to read, in .safetensors files that hold several")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser
