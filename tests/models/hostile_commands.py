"""Command lines and damages that cannot be right, and a word of the answer."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hostile_files import (
    DEEP,
    HEADERS,
    JSONS,
    LINES,
    MODEL,
    OTHER_NUMBERS,
    PRIOR_MODEL,
    SHARD,
    STATE,
    Code,
    array,
    config,
    cut,
    header,
    pipe,
    remove,
    renamed_checkpoints,
    state,
    write,
)


class Case(NamedTuple):
    """A command line, what is done to the files before, and a word of the answer."""

    arguments: str
    words: str
    damage: Callable[[Path], object] | None = None


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
        f"sample: weights of {what}": Case(SAMPLE, "model.safetensors", header(PRIOR_MODEL, HEADERS[what]))
        for what in ("an offset past the end", "a shape of another size")
    },
    **{
        f"{arguments.split()[0]}: weights of integers": Case(arguments, "torch.int32", header(path, OTHER_NUMBERS))
        for arguments, path in ((RESUME, MODEL), (EVALUATE, MODEL), (SAMPLE, PRIOR_MODEL))
    },
    "train_prior: shard of other numbers": Case(PRIOR, "shard", header(SHARD, OTHER_NUMBERS)),
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
