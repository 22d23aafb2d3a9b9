"""I3D of the Frechet video distance, as the TorchScript file that StyleGAN-V's authors made of it.

B batch, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from models.errors import UserError
from models.pretrained.backbone import Backbone, Info, is_published, weights_path

INFO = Info(
    name="i3d",
    file="i3d_torchscript.pt",
    source="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
    licence="Apache-2.0",
    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)
_FRAMES = 9  # fewer leave nothing for its last pool


class I3D(Backbone):
    """The network. It takes videos, and gives nothing but their embedding."""

    layers = ()
    size = 224

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__(INFO, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.script = script

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        raise UserError(f"{INFO.name}: has no feature maps, only the embedding of a video")

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        raise UserError(f"{INFO.name}: has no logits, only the embedding of a video")

    @torch.no_grad()
    def embed(self, videos: torch.Tensor) -> torch.Tensor:  # [B, T, 3, H, W] in [-1, 1] -> [B, 400]
        """Its logits before the softmax, of pixels rounded to 8 bits and scaled by the file itself."""
        if videos.dim() != 5 or videos.shape[2] != 3 or videos.shape[1] < _FRAMES:
            raise ValueError(f"videos: expected [B, T >= {_FRAMES}, 3, H, W], got {list(videos.shape)}")
        pixels = videos.add(1).mul(127.5).round().clamp(0, 255).transpose(1, 2)  # [B, 3, T, H, W]
        return self.script(pixels, rescale=True, resize=True, return_features=True)


def load(path: Path | str | None = None) -> I3D:
    """The network of a TorchScript file."""
    file = weights_path(INFO, path)
    try:
        script = torch.jit.load(str(file), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{INFO.name}: {file} is not a TorchScript file ({str(error).splitlines()[0]})") from error
    network = I3D(script)
    network.requires_grad_(False).eval()
    network.published = is_published(INFO, file)
    return network
