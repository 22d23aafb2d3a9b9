"""The stand-ins for other processors: they add the same numbers in another order, and a red test is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# what a test that asserts the bits of torch's kernels does: the same rows with and without others beside them
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
a, b, c = torch.randn(3, 40, 300), torch.randn(3, 300, 7), torch.randn(40)
half, integers = a.bfloat16(), torch.randint(-9, 9, (40, 30))
calls = [
    (lambda t: t[0] @ b[0].to(t), 300),
    (lambda t: t @ b.to(t), 300),
    (lambda t: torch.addmm(c[: t.shape[1], None].to(t), t[0], b[0].to(t), beta=3, alpha=0.5), 302),
    (lambda t: torch.baddbmm(c[None, : t.shape[1], None].to(t), t, b.to(t)), 302),
    (lambda t: torch.nn.functional.linear(t, b[0].T.to(t), c[:7].to(t)), 302),
    (lambda t: t[0] @ b[0, :, 0].to(t), 300),
    (lambda t: t.sum(-1), 300),
    (lambda t: t.mean(-1), 301),
    (lambda t: torch.linalg.vector_norm(t, dim=-1), 301),
]
exact = [call(a.double()) for call, _ in calls], [call(a.double().abs()) for call, _ in calls]
before = [call(a) for call, _ in calls]
import other_order
for (call, terms), truth, was in zip(calls, exact[0], before):
    got, fewer = call(a), call(a[:, :-1])
    rows = got[..., :-1, :] if got.dim() == fewer.dim() > 1 and got.shape[-1] == fewer.shape[-1] else got[..., :-1]
    assert not torch.equal(rows, fewer), "the same bits with other rows beside"
    size = a.double().abs().sum(-1).max() * b.double().abs().max() * 3 + 3
    assert float((got - truth).abs().max()) <= (terms + 4) * 2.0**-24 * float(size)
    assert got.shape == was.shape and got.dtype == was.dtype
x = torch.randn(5, 4, requires_grad=True)
torch.nn.Linear(4, 3)(x).square().sum().backward()
assert x.grad.shape == x.shape
assert torch.equal(integers.sum(0), torch.tensor([sum(column) for column in integers.T.tolist()]))
assert integers.sum().dtype == (integers > 0).sum().dtype == torch.int64
assert half.sum(0).dtype == (half[0] @ half[0].T).dtype == torch.bfloat16
nothing = torch.zeros(0, 3)
assert nothing.sum() == 0 and nothing.sum(0).shape == (3,) and nothing.T.sum(1).shape == (3,)
assert torch.tensor(3.0).sum() == 3 and (nothing.T @ nothing).shape == (3, 3)
for order in (0, 1, 3, torch.inf, -torch.inf):
    assert torch.linalg.vector_norm(torch.tensor([3.0, 0.0, 4.0]), order).isfinite()
print("fine")
"""


def test_another_order_is_one_of_the_same_numbers() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_table_tells_what_is_green_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # of the setting that this test itself may run under
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    suite = tmp_path / "test_small.py"
    suite.write_text("import os\ndef test_small():\n    assert os.environ.get('ATEN_CPU_CAPABILITY') != 'default'\n")
    settings = [word for name in ("one thread", "ATEN_CPU_CAPABILITY=default") for word in ("--only", name)]
    command = [sys.executable, str(TESTS / "other_kernels.py"), *settings, "-p", "no:cacheprovider", str(suite)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    green, red = done.stdout.splitlines()[-2:]
    assert green.split()[:4] == ["one", "thread", "green", "1"]
    assert red.split()[:4] == ["ATEN_CPU_CAPABILITY=default", "RED", "1", "failed"]
    assert "test_small.py::test_small" in done.stdout


@pytest.mark.parametrize("setting", ["no such"])
def test_an_unknown_setting_is_refused(setting: str) -> None:
    command = [sys.executable, str(TESTS / "other_kernels.py"), "--only", setting]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 2
