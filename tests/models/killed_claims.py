"""``python killed_claims.py OUT [KIND ...]``: ``reproduce --all`` of a tiny claim, killed by SIGKILL over and over.

Moments at which it can be killed: before each step of a training; before and after a measurement; when half of a text
file is written; before and after each rename. First a run is left alone, and its moments are listed. Then, for the
first moment of each KIND, or for all moments if none is named, a run in an empty folder is killed there, and the
command is given again. A last folder sees a kill in each run, at a later and later moment, until a run comes through.
Prints as JSON which moments there were, and, for each folder, what results and page came out to be.

Runs are forks of one process, which has imported what they need.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # a training asks for it, which takes longer than the training

from models import reproduce
from models.claims.claim import Chart, Check, Claim, Made, Metric, Train, Trial, Variant
from models.data.photos import embedded_photos
from models.networks.patch import PatchConfig
from models.tokenizers.config import QuantizerConfig
from models.training.config import OptimizerConfig
from models.training.runs import load_tokenizer
from models.training.tokenizer_run import TokenizerRun, TokenizerStage
from models.training.tokenizer_task import TokenizerTask

moments: list[str] = []
kill_at: int | None = None


def passed(kind: str) -> None:
    """A moment; the one that is asked for is the last."""
    moments.append(kind)
    if len(moments) - 1 == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def number(made: Made) -> dict[str, float]:
    passed("measuring")
    tokenizer = load_tokenizer(made.run)
    found = {"weight": float(sum(part.detach().double().abs().sum() for part in tokenizer.parameters()))}
    passed("measured")
    return found


def around(name: str) -> Callable[..., Any]:
    original = getattr(Path, name)

    def told(self: Path, target: Path | str) -> Path:
        kind = name + " " + ("checkpoint" if "step_" in self.name else Path(target).suffix)
        passed(f"before {kind}")
        result: Path = original(self, target)
        passed(f"after {kind}")
        return result

    return told


def half_written(self: Path, text: str, **options: Any) -> int:
    whole: Callable[..., int] = half_written.original  # type: ignore[attr-defined]
    whole(self, text[: len(text) // 2], **options)
    passed(f"half of {self.suffix}")
    return whole(self, text, **options)


def prepare() -> None:
    """The claim, and a look at every moment."""
    config = TokenizerRun(
        recipe="tiny",
        network=PatchConfig(hidden=32, blocks=1),
        quantizer=QuantizerConfig(codebook="online", num_codes=32, anchor="random", commitment_weight=0.25),
        stage=TokenizerStage(optimizer=OptimizerConfig(lr=3e-3), image_size=32, batch_size=2, steps=3),
        log_every=1,
        val_every=3,
        val_samples=2,
        checkpoint_every=2,
    )
    more = replace(config, quantizer=replace(config.quantizer, num_codes=64))
    trial = Trial(
        form="As it is.",
        variants=(Variant(name="few", run=Train(config=config)), Variant(name="many", run=Train(config=more))),
        measure=number,
        metrics=(Metric(key="weight", title="weight"),),
        checks=(Check(says="heavier", high=("many", "weight"), low=("few", "weight"), margin=0.0),),
        chart=Chart(y="weight"),
        seeds=(0,),
        minutes=1,
    )
    claim = Claim(name="tiny", title="A claim", system="None", place="Table 0", says="It is.", pocket=trial)
    reproduce.CLAIMS.clear()
    reproduce.CLAIMS["tiny"] = claim
    loss = TokenizerTask.loss

    def told(self: TokenizerTask, *arguments: Any) -> Any:
        passed("training")
        return loss(self, *arguments)

    TokenizerTask.loss = told  # type: ignore[method-assign]
    half_written.original = Path.write_text  # type: ignore[attr-defined]
    Path.write_text = half_written  # type: ignore[method-assign,assignment]
    Path.replace, Path.rename = around("replace"), around("rename")  # type: ignore[method-assign]


def run(out: Path, kill: int | None) -> bool:
    """The command in a process of its own; whether it came through."""
    global kill_at
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        kill_at = kill
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["reproduce", "--all", "--out", str(out)]
        reproduce.main()
        (out / "moments").write_bytes(json.dumps(moments).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"{out}: expected a kill or an end, got status {status}"
    return True


def outcome(out: Path) -> dict[str, Any]:
    """Results and page, without the minutes of trainings, which are those of a clock."""
    result = json.loads((out / "results" / "tiny.json").read_text(encoding="utf-8"))
    result["trainings"] = {seed: sorted(minutes) for seed, minutes in result["trainings"].items()}
    left = sorted(str(path.relative_to(out)) for kind in ("results", "measured") for path in (out / kind).iterdir())
    return {"result": result, "page": (out / "claims.html").read_text(encoding="utf-8"), "files": left}


def main(out: Path, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    embedded_photos()  # read once for all
    prepare()
    assert run(out / "whole", None)
    seen = json.loads((out / "whole" / "moments").read_text(encoding="utf-8"))
    found = {"moments": seen, "whole": outcome(out / "whole")}
    for moment in [seen.index(kind) for kind in kinds] or range(len(seen)):
        folder = out / f"killed-{moment}"
        assert not run(folder, moment), f"not killed at {seen[moment]}"
        assert run(folder, None)
        found[f"{seen[moment]}, moment {moment}"] = outcome(folder)
    kills = 0
    while not run(out / "again", kills * 9):
        kills += 1
    found[f"killed {kills} times"] = outcome(out / "again")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
