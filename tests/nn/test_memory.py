"""A training step needs no N x K. Oracle: resident memory of a fresh process against a bound from the sizes."""

from __future__ import annotations

import pytest
from needs import needs_extension

from vqkernels.testing import peak_memory_growth

MIB = 1 << 20
# allocator arenas, thread stacks and code pages loaded late: what two threads need whatever the sizes
FIXED = 32 * MIB

SETUP = """
import torch, vqkernels
torch.set_num_threads(2)

def step(n, quantizer, optimizer):
    x = torch.randn(n, 8, requires_grad=True)
    out = quantizer(x)
    (out.quantized.square().mean() + out.loss).backward()
    optimizer.step()

def build(k):
    quantizer = vqkernels.VectorQuantizer(8, k, codebook={config})
    parameters = [*quantizer.parameters(), torch.zeros(1, requires_grad=True)]
    return quantizer, torch.optim.SGD(parameters, lr=0.1)

step(600, *build(300))
large = build({k})
"""

KINDS = {
    "learned": "vqkernels.Learned()",
    "ema": "vqkernels.Ema()",
    "ema-revived": "vqkernels.Ema(dead_after=1)",
    "online": "vqkernels.OnlineClustering()",
    "frozen": "vqkernels.Frozen(features=torch.randn(k, 16))",
}


@needs_extension
@pytest.mark.parametrize(
    "kind",
    [kind if kind == "ema-revived" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_training_step_of_16384_vectors_with_100000_codes(kind: str) -> None:
    n, k, d = 16384, 100000, 8
    # a dozen float32 copies of vectors and codes, and as many numbers of bookkeeping for each
    budget = 12 * 4 * (n + k) * (d + 8) + FIXED
    assert 40 * budget < 4 * n * k
    assert peak_memory_growth(SETUP.format(k=k, config=KINDS[kind]), f"step({n}, *large)") < budget
