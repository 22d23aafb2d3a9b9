"""Command lines and files that cannot be right: one line that says so, nothing left behind, nothing that hangs."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tyro
from code_folders import write_codes
from PIL import Image

from models import (
    command,
    demo,
    evaluate,
    extract_codes,
    extract_features,
    import_checkpoint,
    replace_tokens,
    sample,
    train_classifier,
    train_prior,
    train_tokenizer,
    visualize,
)
from models.config_json import Flat
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_run import PriorRun

SECONDS = 20  # after which a command hangs


class Case(NamedTuple):
    """A command line, what is done to the files before, and a word of the answer."""

    arguments: str
    words: str
    damage: Callable[[Path], object] | None = None


def tiny_prior(data: str) -> PriorRun:
    return PriorRun(
        recipe="tiny_prior",
        data=data,
        prior=AutoregressiveConfig(network=GPTConfig(layers=1, heads=2, width=16)),
        stage=StageConfig(steps=1, batch_size=4, optimizer=OptimizerConfig(schedule="constant")),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any) -> Path:
    """Images, a tokenizer, codes, a prior, as the commands leave them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        images = Path("images")
        images.mkdir()
        for number in range(12):
            pixels = np.random.default_rng(number).integers(256, size=(24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number:02d}.png")
        small = dataclasses.replace(tiny_config, data="images", val_samples=1)
        for codebook in ("learned", "frozen"):
            changes: dict[str, Any] = {"codebook": codebook, "num_codes": 8, "features": "random"}
            config = dataclasses.replace(small, quantizer=dataclasses.replace(small.quantizer, **changes))
            stage = dataclasses.replace(config.stage, steps=1, batch_size=2, image_size=16)
            config = dataclasses.replace(config, stage=stage, recipe=codebook)
            RECIPES[codebook] = config
            if codebook == "learned":
                train_tokenizer.train(config, out="run", progress=False)
        extract_codes.extract(
            Path("run"), Path("codes"), image_size=16, batch_size=4, shard_size=16, samples=None, progress=False
        )
        write_codes(Path("other"), shape=(2, 2), counts=(6, 4))
        train_prior.train(tiny_prior("codes:codes"), out="prior", progress=False)
    return folder


RECIPES: dict[str, Any] = {}


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to damage, which is where commands run; a command that hangs is stopped."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    tokenizers = tyro.extras.subcommand_type_from_defaults({**RECIPES, "third": RECIPES["learned"]})
    priors = {"tiny_prior": tiny_prior("codes:codes"), "second": tiny_prior("codes:codes")}
    monkeypatch.setattr(train_tokenizer, "Recipe", Flat[tokenizers])
    monkeypatch.setattr(train_prior, "Recipe", Flat[tyro.extras.subcommand_type_from_defaults(priors)])

    def hangs(*_: object) -> None:
        raise AssertionError(f"the command hangs for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield folder
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def started(name: str, arguments: list[str]) -> int:
    """The exit code of a command."""
    if name in WHOLE:
        main = WHOLE[name].main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            return ended(lambda: command.run(main))
    main = COMMANDS[name].main
    return ended(lambda: command.run(lambda: tyro.cli(main, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))))


def ended(call: Callable[[], int]) -> int:
    try:
        return call()
    except SystemExit as end:
        return -1 if end.code is None else int(end.code)


# whose main() is all of it
WHOLE: dict[str, Any] = {
    "demo": demo,
    "train_classifier": train_classifier,
    "train_prior": train_prior,
    "train_tokenizer": train_tokenizer,
}
COMMANDS: dict[str, Any] = {
    "evaluate": evaluate,
    "extract_codes": extract_codes,
    "extract_features": extract_features,
    "import_checkpoint": import_checkpoint,
    "replace_tokens": replace_tokens,
    "sample": sample,
    "visualize": visualize,
}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda here: (here / name).write_bytes(data)


def pipe(name: str) -> Callable[[Path], object]:
    return lambda here: ((here / name).unlink(missing_ok=True), os.mkfifo(here / name))


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:size])


def remove(name: str) -> Callable[[Path], object]:
    return lambda here: (here / name).unlink()


def array(name: str, value: np.ndarray) -> Callable[[Path], object]:
    return lambda here: np.save(here / name, value)


def renamed_checkpoints(here: Path) -> None:
    for name, other in (("step_000000", "step_first"), ("step_000001", "step_-1")):
        (here / CHECKPOINTS / name).rename(here / CHECKPOINTS / other)


def state(**changes: Any) -> Callable[[Path], object]:
    def change(here: Path) -> None:
        path = here / STEP / "state.pt"
        torch.save({**torch.load(path), **changes}, path)

    return change


def header(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The header of a safetensors file, changed; the data stay."""

    def damage(here: Path) -> None:
        content = (here / name).read_bytes()
        size = int.from_bytes(content[:8], "little")
        told = json.loads(content[8 : 8 + size])
        change(told)
        text = json.dumps(told).encode()
        (here / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return damage


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of every tensor of a header."""
    return lambda told: [change(one) for key, one in told.items() if key != "__metadata__"]


def config(run: str, **changes: Any) -> Callable[[Path], object]:
    def change(here: Path) -> None:
        path = here / run / "config.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, **changes}))

    return change


CHECKPOINTS = "run/checkpoints"
STEP = f"{CHECKPOINTS}/step_000001"
MODEL, STATE = f"{STEP}/model.safetensors", f"{STEP}/state.pt"
SHARD = "codes/train/shard_00000.safetensors"
DEEP = "[" * 100_000


class Code:
    """What a pickle must not run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


HEADERS = {
    "an offset past the end": tensors(lambda one: one.update(data_offsets=[0, 1 << 40])),
    "an offset below 0": tensors(lambda one: one.update(data_offsets=[-8, 8])),
    "offsets that overlap": tensors(lambda one: one.update(data_offsets=[0, 8])),
    "a shape of another size": tensors(lambda one: one.update(shape=[*one["shape"], 2])),
    "a shape below 0": tensors(lambda one: one.update(shape=[-1])),
    "a shape beyond 64 bits": tensors(lambda one: one.update(shape=[1 << 63, 1 << 63])),
    "a type that is none": tensors(lambda one: one.update(dtype="F23")),
    "a type of another size": tensors(lambda one: one.update(dtype="BF16")),
    "no tensors": lambda told: told.clear(),
    "a tensor of nothing": lambda told: told.update(nothing=None),
}
JSONS = {
    "null": "null",
    "list": "[1]",
    "text": '"a"',
    "deep": DEEP,
    "bytes": b"\xff\xfe\0",
    "empty": "",
    "cut": '{"a',
}
LINES = {
    "null": "null\n",
    "list": "[1]\n",
    "no step": '{"loss": 1}\n',
    "deep": f"{DEEP}\n",
    "a step of text": '{"step": "1"}\n',
    "bytes": b"\xff\xfe\n",
}

TRAIN = "train_tokenizer learned --out new"
FROZEN = "train_tokenizer frozen --out new"
RESUME = "train_tokenizer learned --out run --resume"
EVALUATE = "evaluate run --size 16 --metrics psnr"
CODES = "extract_codes run --out new"
PRIOR = "train_prior tiny_prior --out new"
CLASSIFIER = "train_classifier token_classifier_pocket --out new"
SAMPLE = "sample prior run --out new --count 1"

CASES: dict[str, Case] = {
    **{
        f"{TRAIN} {options}": Case(f"{TRAIN} {options}", words)
        for options, words in {
            "--hidden -1": "hidden",
            "--hidden 0": "hidden",
            "--hidden 33": "hidden",
            "--hidden 99999999968": "memory",
            "--patch-size 0": "patch_size",
            "--patch-size -8": "patch_size",
            "--patch-size 7": "image_size",
            "--patch-size 99999": "image_size",
            "--blocks -1": "blocks",
            "--image-size 17": "image_size",
            "--image-size 999999": "image_size",
            "--disc-start 1 --disc.layers 9": "layers",
            "--disc-start 1 --disc.layers 4000": "layers",
            "--disc-start 1 --image-size 32 --disc.channels 0": "channels",
            "--disc-start 1 --image-size 32 --disc.channels -4": "channels",
            "--num-codes 99999999999999999": "num_codes",
            "--num-codes 1000000000000": "num_codes",
            "--code-dim 1000000000000": "memory",
            "--groups 3": "groups",
            "--nested-keep-probs 0.5 0.7": "nested_keep_probs",
            "--entropy-weight 1 --entropy-temperature 0": "temperature",
            "--commitment-weight nan": "commitment_weight",
            "--codebook ema --decay 2": "decay",
            "--codebook ema --init kmeans --num-codes 100000": "num_codes",
            "--seed -1": "seed",
            "--seed 18446744073709551616": "seed",
            "--lr nan": "lr",
            "--lr inf": "lr",
            "--betas 2 2": "betas",
            "--eps -1": "eps",
            "--weight-decay nan": "weight_decay",
            "--l1-weight nan": "l1_weight",
            "--l1-weight inf": "l1_weight",
            "--ema-decay nan": "ema_decay",
            "--batch-size 99999999999": "batch_size",
            "--data nowhere": "nowhere",
            "--data images/00.png": "images/00.png",
            "--data codes:codes": "data",
            "--data shards:nowhere-*.tar": "nowhere",
            "--start nowhere": "nowhere",
            "--trains nothing": "trains",
            "--checkpoint-activations": "checkpoint_activations",
            "--track trackio": "track",
            "--perceptual-weight 1 --perceptual vgg16 --perceptual-file nowhere": "nowhere",
        }.items()
    },
    "out is a file": Case("train_tokenizer learned --out images/00.png", "images/00.png"),
    "out is below a file": Case("train_tokenizer learned --out images/00.png/new", "images/00.png"),
    "out holds a run": Case("train_tokenizer learned --out run", "--resume"),
    "a held-out image that is none": Case(f"{TRAIN} --data images", "data", write("images/09.png", b"none")),
    "data is a pipe": Case(f"{TRAIN} --data pipe", "pipe", pipe("pipe")),
    "shards are a pipe": Case(f"{TRAIN} --data shards:pipe.tar", "pipe", pipe("pipe.tar")),
    **{
        f"features: {what}": Case(f"{FROZEN} --features features.npy", "features", damage)
        for what, damage in {
            "of strings": array("features.npy", np.full((8, 4), "a")),
            "of objects": array("features.npy", np.full((8, 4), None)),
            "of complex numbers": array("features.npy", np.ones((8, 4), complex)),
            "of too few rows": array("features.npy", np.ones((7, 4))),
            "of no columns": array("features.npy", np.ones((8, 0))),
            "of one dimension": array("features.npy", np.ones(8)),
            "of NaN": array("features.npy", np.full((8, 4), np.nan)),
            "of 1e300": array("features.npy", np.full((8, 4), 1e300)),
            "a header cut": lambda here: (
                np.save(here / "features.npy", np.ones((8, 4))),
                cut("features.npy", 50)(here),
            ),
            "data cut": lambda here: (
                np.save(here / "features.npy", np.ones((8, 4))),
                cut("features.npy", 150)(here),
            ),
            "an archive": lambda here: (
                np.savez(here / "a.npz", a=np.ones((8, 4))) or (here / "a.npz").rename(here / "features.npy")
            ),
            "a folder": lambda here: (here / "features.npy").mkdir(),
            "a pipe": pipe("features.npy"),
            "a pickle": write("features.npy", pickle.dumps(Code())),
        }.items()
    },
    "features: a name that is none": Case(f"{FROZEN} --features resnet", "features"),
    "features: of 0 dimensions": Case(f"{FROZEN} --feature-dim 0", "feature_dim"),
    "features: of -1 dimensions": Case(f"{FROZEN} --feature-dim -1", "feature_dim"),
    "features: of too many dimensions": Case(f"{FROZEN} --feature-dim 99999999999999", "memory"),
    "features: of more codes than patches": Case(f"{FROZEN} --features patches --feature-dim 999", "feature_dim"),
    **{
        f"{arguments.split()[0]} {' '.join(arguments.split()[3:])}: config {what}": Case(
            arguments, "config.json", write("run/config.json", text)
        )
        for arguments in (RESUME, EVALUATE, CODES)
        for what, text in JSONS.items()
    },
    "resume: another kind of run": Case(RESUME, "kind", config("run", kind="nothing")),
    "resume: a stage of nothing": Case(RESUME, "stage", config("run", stage=None)),
    "evaluate: a field too many": Case(EVALUATE, "fields", config("run", more=1)),
    "evaluate: a network of text": Case(EVALUATE, "network", config("run", network="a")),
    **{
        f"resume: log line {what}": Case(RESUME, "metrics.jsonl", write("run/metrics.jsonl", text))
        for what, text in LINES.items()
    },
    **{
        f"{arguments.split()[0]}: weights of {what}": Case(arguments, "model.safetensors", header(MODEL, change))
        for arguments in (RESUME, EVALUATE)
        for what, change in HEADERS.items()
    },
    **{
        f"resume: state {what}": Case(RESUME, "state.pt", damage)
        for what, damage in {
            "of random bytes": write(STATE, np.random.default_rng(0).bytes(5000)),
            "that runs code": write(STATE, pickle.dumps(Code())),
            "of nothing": write(STATE, b""),
            "cut": cut(STATE, 1000),
            "gone": remove(STATE),
            "a pipe": pipe(STATE),
        }.items()
    },
    **{
        f"resume: state with {what}": Case(RESUME, "step_000001", state(**changes))
        for what, changes in {
            "no optimizer of the model": {"optimizers": {}},
            "an optimizer of nothing": {"optimizers": {"model": None}},
            "an optimizer of text": {"optimizers": "a"},
            "an optimizer of another kind": {
                "optimizers": {
                    "model": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1, momentum=0.9).state_dict()
                }
            },
            "modules of text": {"modules": "a"},
        }.items()
    },
    **{
        f"evaluate {options}": Case(f"evaluate run {options}", words)
        for options, words in {
            "--size 0": "size",
            "--size -8": "size",
            "--size 15": "size",
            "--size 16 --metrics nonsense": "metrics",
            "--size 16 --device cuda": "device",
            "--size 16 --device nonsense": "device",
            "--size 16 --device meta": "device",
            "--size 16 --data nowhere": "nowhere",
            "--size 16 --limit 0": "limit",
            "--size 16 --keep 99": "keep",
            "--size 16 --step 7": "step",
            "--size 16 --batch-size 0": "batch_size",
            "--size 16 --workers -1": "workers",
            "--size 16 --save-every 0": "save_every",
            "--size 16 --out images": "images",
            "--limit 3": "size",
        }.items()
    },
    "evaluate: a folder that is none": Case("evaluate nowhere --size 16", "nowhere"),
    "evaluate: a pipe": Case("evaluate pipe --size 16 --data images", "pipe", pipe("pipe")),
    "evaluate: checkpoints of other names": Case(EVALUATE, "checkpoint", renamed_checkpoints),
    **{
        f"{CODES} {options}": Case(f"{CODES} {options}", words)
        for options, words in {
            "--image-size 0": "image_size",
            "--image-size 15": "image_size",
            "--samples 0": "samples",
            "--tokens 3": "tokens",
            "--batch-size 0": "batch_size",
            "--shard-size 0": "shard_size",
            "--views ten --ratios 0": "ratios",
            "--views ten --ratios nan": "ratios",
            "--data nowhere": "nowhere",
            "--seed -1": "seed",
            "--workers -1": "workers",
        }.items()
    },
    "extract_codes: out is a file": Case("extract_codes run --out images/00.png", "images/00.png"),
    "extract_codes: not a run": Case("extract_codes images --out new", "images"),
    **{
        f"extract_codes: manifest {what}": Case(
            "extract_codes run --out codes", "manifest.json", write("codes/train/manifest.json", text)
        )
        for what, text in JSONS.items()
    },
    **{
        f"train_prior: manifest {what}": Case(PRIOR, "manifest.json", write("codes/train/manifest.json", text))
        for what, text in {**JSONS, "of other things": '{"format": 1}'}.items()
    },
    **{
        f"train_prior: shard of {what}": Case(PRIOR, "shard", header(SHARD, change))
        for what, change in HEADERS.items()
    },
    "train_prior: shard cut": Case(PRIOR, "shard", cut(SHARD, 60)),
    "train_prior: shard of bytes": Case(PRIOR, "shard", write(SHARD, b"\xff" * 200)),
    "train_prior: shard a pipe": Case(PRIOR, "shard", pipe(SHARD)),
    **{
        f"train_prior {options}": Case(f"{PRIOR} {options}", words)
        for options, words in {
            "--data nowhere": "data",
            "--data codes:nowhere": "nowhere",
            "--data latents:codes": "data",
            "--tokenizer nowhere": "nowhere",
            "--network.width 0": "width",
            "--network.width 17": "width",
            "--network.layers -1": "layers",
            "--network.heads 0": "heads",
            "--lr nan": "lr",
            "--latent-scale 0": "latent_scale",
            "--start run": "run",
        }.items()
    },
    **{
        f"{CLASSIFIER} {options}": Case(f"{CLASSIFIER} {options}", words)
        for options, words in {
            "--data nowhere": "data",
            "--data codes:nowhere": "nowhere",
            "--data codes:codes": "classes",
            "--data codes:other --tokenizer nowhere": "nowhere",
            "--data codes:other --tokenizer run": "tokenizer",
            "--data codes:other --start run": "run",
            "--data codes:other --label-smoothing nan": "label_smoothing",
        }.items()
    },
    "train_classifier: manifest deep": Case(
        f"{CLASSIFIER} --data codes:other", "manifest.json", write("other/train/manifest.json", DEEP)
    ),
    "train_prior: codes of another tokenizer": Case(f"{PRIOR} --data codes:other --tokenizer run", "tokenizer"),
    **{
        f"{SAMPLE} {options}": Case(f"{SAMPLE} {options}", words)
        for options, words in {
            "--classes -1": "classes",
            "--classes 99": "classes",
            "--count 0": "count",
            "--batch-size 0": "batch_size",
            "--temperature -1": "temperature",
            "--temperature nan": "temperature",
            "--top-k 0": "top_k",
            "--top-p 2": "top_p",
            "--guidance nan": "guidance",
            "--grid 0 0": "grid",
            "--steps 3": "steps",
            "--seed -1": "seed",
        }.items()
    },
    "sample: the wrong way round": Case("sample run prior --out new", "prior"),
    "sample: out is a file": Case("sample prior run --out images/00.png --count 1", "images/00.png"),
    "sample: a prior without weights": Case(
        SAMPLE, "model.safetensors", remove("prior/checkpoints/step_000001/model.safetensors")
    ),
    **{
        f"sample: what was asked {what}": Case(
            "sample prior run --out samples --count 1",
            "sample.json",
            lambda here, text=text: ((here / "samples").mkdir(), write("samples/sample.json", text)(here)),
        )
        for what, text in JSONS.items()
    },
    **{
        f"replace_tokens {options}": Case(f"replace_tokens run {options}", words)
        for options, words in {
            "--ranks 0": "ranks",
            "--ranks 99": "ranks",
            "--size 0": "size",
            "--size 15": "size",
            "--images 0": "images",
            "--batch-size 0": "batch_size",
            "--device cuda": "device",
            "--device nonsense": "device",
            "--data nowhere": "nowhere",
            "--step 7": "step",
        }.items()
    },
    "replace_tokens: not a run": Case("replace_tokens images", "images"),
    **{
        f"visualize {options}": Case(f"visualize run --out new {options}", words)
        for options, words in {
            "--images 0": "images",
            "--image-size 0": "image_size",
            "--image-size 15": "image_size",
            "--noise -1": "noise",
            "--noise nan": "noise",
            "--data nowhere": "nowhere",
            "--seed -1": "seed",
            "--prior-run images": "images",
            "--prior-run run": "run",
        }.items()
    },
    "visualize: out is a file": Case("visualize run --out images/00.png", "images/00.png"),
    **{
        f"import_checkpoint: {what}": Case("import_checkpoint taming file --out new", "file", damage)
        for what, damage in {
            "gone": lambda here: None,
            "a folder": lambda here: (here / "file").mkdir(),
            "a pipe": pipe("file"),
            "bytes": write("file", np.random.default_rng(0).bytes(5000)),
            "code": write("file", pickle.dumps(Code())),
            "nothing": write("file", b""),
            "a list": lambda here: torch.save([1], here / "file"),
            "numbers": lambda here: torch.save({"state_dict": {"a": 1}}, here / "file"),
        }.items()
    },
    "import_checkpoint: a layout that is none": Case("import_checkpoint nothing file --out new", "layout"),
    **{
        f"extract_features {options}": Case(f"extract_features {options}", words)
        for options, words in {
            "nowhere --out new": "nowhere",
            "images/00.png --out new": "images/00.png",
            "codes --out new": "codes",
            "images --out images/00.png": "images/00.png",
            "images --out new --grid 0": "grid",
            "images --out new --batch-size 0": "batch_size",
            "images --out new --shard-images 0": "shard_images",
            "images --out new --device nonsense": "device",
        }.items()
    },
    **{
        f"extract_features: settings {what}": Case(
            "extract_features images --out shards",
            "features.json",
            lambda here, text=text: ((here / "shards").mkdir(), write("shards/features.json", text)(here)),
        )
        for what, text in JSONS.items()
    },
    "demo: out is a file": Case("demo --out images/00.png", "images/00.png"),
}


# what others of its kind stand for
_RARE = re.compile(
    r"(config|manifest|asked|settings) (list|text|empty|bytes|cut)$"
    r"|^(evaluate|extract_codes).* null$"
    r"|^evaluate: weights of"
    r"|^train_prior: shard of (an offset below|a shape|a type)"
    r"|^(sample|visualize|replace_tokens|evaluate|extract_codes) .*(workers|seed|batch-size|steps|save-every)"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if _RARE.search(name) else ()) for name in CASES]
)
def test_one_line_and_nothing_left(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    if case.damage is not None:
        case.damage(here)
    before = contents(here)
    command_name, *arguments = case.arguments.split()
    code = started(command_name, arguments)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    if code == 2:
        # what cannot be parsed is told by the parser, in a box
        assert re.search(rf"\b{case.words}\b", output.out + output.err)
    else:
        assert code == 1, output
        (line,) = output.err.strip().splitlines()
        assert line.startswith("error: ")
        assert case.words in line
        assert len(line) < 400
        assert output.out == ""
    after = contents(here)
    assert set(after) == set(before)
    assert after == before
