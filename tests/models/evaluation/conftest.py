"""A small tokenizer of random weights, and a run of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.evaluation import measures
from models.networks.patch import PatchConfig
from models.pretrained import Backbone, load_backbone
from models.pretrained.efficientnet_lite0 import EfficientNetLite0
from models.tokenizers import Tokenizer, build_tokenizer
from models.tokenizers.config import QuantizerConfig
from models.train_tokenizer import train
from models.training.tokenizer_run import TokenizerRun, replace_stage


@pytest.fixture(autouse=True)
def _loaded_once(efficientnet: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, path: Path | None) -> Backbone:
        return efficientnet if (name, path) == ("efficientnet_lite0", None) else load_backbone(name, path)

    monkeypatch.setattr(measures, "load_backbone", load)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return build_tokenizer(
        PatchConfig(hidden=32, blocks=1), QuantizerConfig(codebook="learned", num_codes=64, groups=2, code_dim=16)
    ).eval()


@pytest.fixture(scope="session")
def run(tiny_config: TokenizerRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three steps."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(replace_stage(tiny_config, steps=3), out=folder, progress=False)
    return folder
