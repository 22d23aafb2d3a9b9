"""A folder of small real photographs, and a training of seconds on it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from PIL import Image

# its configurations; a machine for GPU tests may lack it
pytest.importorskip("tyro", reason="tyro is not installed")

from models.data.photos import embedded_photos
from models.networks.patch import PatchConfig
from models.pretrained import efficientnet_lite0
from models.pretrained.efficientnet_lite0 import EfficientNetLite0
from models.tokenizers.config import QuantizerConfig
from models.training.config import OptimizerConfig
from models.training.tokenizer_run import TokenizerRun, TokenizerStage


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of folders are kept among the test's own files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQKERNELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle 128 x 128 pixels of every embedded photograph, as files."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in embedded_photos():
        top, left = (side // 2 - 64 for side in photo.image.shape[:2])
        Image.fromarray(photo.image[top : top + 128, left : left + 128]).save(folder / f"{photo.name}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_config(photo_folder: Path) -> TokenizerRun:
    """Milliseconds per step; codes are re-anchored at random, so that training draws random numbers."""
    return TokenizerRun(
        recipe="tiny",
        network=PatchConfig(hidden=32, blocks=1),
        quantizer=QuantizerConfig(codebook="online", num_codes=64, anchor="random", commitment_weight=0.25),
        stage=TokenizerStage(
            optimizer=OptimizerConfig(lr=3e-3, warmup_steps=5), image_size=32, batch_size=4, steps=120
        ),
        data=str(photo_folder),
        log_every=1,
        val_every=40,
        checkpoint_every=15,
    )


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """``with small_disk(size)``: the system lets no file grow beyond ``size`` bytes, much as a full disk does."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def efficientnet() -> EfficientNetLite0:
    """The embedded pretrained network; frozen, so that one serves all tests."""
    return efficientnet_lite0.load()
