"""Interrupted training goes on with the same bits. Oracle: the run that was not interrupted."""

from __future__ import annotations

import io

import pytest
import torch
from nn_oracle import COMPOSED, KINDS, assert_same_state, compose, snapshot

import vqkernels


class Autoencoder(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.quantizer = compose(
            kind, **({"groups": 2} if kind in KINDS else {}), metric="cosine" if kind == "ema-revived" else "l2"
        )
        self.encoder, self.decoder = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantized, _, loss, _ = self.quantizer(self.encoder(x))
        return (self.decoder(quantized) - x).square().mean() + loss


def usages(model: Autoencoder) -> list[vqkernels.nn.Usage]:
    return [part.usage() for part in model.modules() if isinstance(part, vqkernels.VectorQuantizer)]


def train(model: Autoencoder, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [*KINDS, *COMPOSED])
def test_resumed_training_ends_with_the_same_bits(kind: str) -> None:
    def start() -> tuple[Autoencoder, torch.optim.Optimizer]:
        model = Autoencoder(kind)
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    straight, optimizer = start()
    train(straight, optimizer, range(6))

    model, optimizer = start()
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    resumed, optimizer = start()
    for parameter in resumed.parameters():
        torch.nn.init.normal_(parameter)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(3, 6))
    assert_same_state(snapshot(resumed), snapshot(straight))
    for one, other in zip(usages(resumed), usages(straight), strict=True):
        assert all(map(torch.equal, one, other))
