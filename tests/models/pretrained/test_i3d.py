"""I3D's interface, with a TorchScript file that reports what it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import UserError
from models.pretrained import load_backbone

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Detector(torch.nn.Module):
    """The signature of the published file."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return torch.cat([x.mean(dim=[2, 3, 4]), x.amax(dim=[1, 2, 3, 4])[:, None]], dim=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.jit.script(Detector()).save(str(tmp_path / "i3d_torchscript.pt"))
    return tmp_path


def test_videos_arrive_as_the_file_wants_them(path: Path) -> None:
    network = load_backbone("i3d", path)
    videos = torch.zeros(2, 10, 3, 8, 8)
    videos[0, :, 1] = 0.503  # 191.6 of 255
    videos[1] = -1.2
    found = network.embed(videos)
    assert torch.equal(found, torch.tensor([[128.0, 192.0, 128.0, 192.0], [0.0, 0.0, 0.0, 0.0]]))
    assert not network.published


def test_short_videos_and_maps_are_refused(path: Path) -> None:
    network = load_backbone("i3d", path)
    for shape in ((2, 3, 8, 8), (2, 8, 3, 8, 8), (2, 3, 10, 8, 8)):
        with pytest.raises(ValueError, match=r"^videos: expected \[B, T >= 9, 3, H, W\], got \["):
            network.embed(torch.zeros(shape))
    with pytest.raises(UserError, match=r"^i3d: has no logits, only the embedding of a video$"):
        network.logits(torch.zeros(1, 3, 8, 8))


def test_files_that_are_no_torchscript_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^i3d: no weights at .*; get i3d_torchscript.pt from https://www.dropbox"):
        load_backbone("i3d", tmp_path)
    (tmp_path / "i3d_torchscript.pt").write_text("nothing")
    with pytest.raises(UserError, match=r"^i3d: .* is not a TorchScript file \(.*\)$") as caught:
        load_backbone("i3d", tmp_path)
    assert "\n" not in str(caught.value)
