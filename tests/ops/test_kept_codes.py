"""Codes that come again are kept with a tree over them, and whatever is written to them is seen by the next call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from needs import needs_extension

import vqkernels
from vqkernels._core.env import kept_bytes
from vqkernels._core.extension import extension

pytestmark = needs_extension

K, D = 4096, 4


@pytest.fixture(autouse=True)
def empty_shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VQKERNELS_KEPT_MIB", "64")
    extension().forget_codes()
    yield
    extension().forget_codes()


def use(codebook: torch.Tensor, x: torch.Tensor, metric: str = "l2") -> None:
    """Looks up until there is a tree."""
    for _ in range(60):
        vqkernels.nearest_code(x, codebook, metric=metric, backend="cpu")
        if extension().kept_codes()["trees"]:
            return
    pytest.fail("no tree after 60 calls")


def assert_same_as_reference(x: torch.Tensor, codebook: torch.Tensor, metric: str = "l2") -> None:
    found = vqkernels.nearest_code(x, codebook, metric=metric, backend="cpu")
    truth = vqkernels.nearest_code(x, codebook, metric=metric, backend="reference")
    assert torch.equal(found.indices, truth.indices)
    assert torch.equal(found.distance.view(torch.int32), truth.distance.view(torch.int32))


def by_data(codebook: torch.nn.Parameter) -> None:
    codebook.data[7] = codebook.data[9]  # no version counter tells


def by_numpy(codebook: torch.nn.Parameter) -> None:
    codebook.detach().numpy()[1234, 2] += 1


def by_view(codebook: torch.nn.Parameter) -> None:
    with torch.no_grad():
        codebook.view(-1)[-1:].mul_(-1)


def by_step(codebook: torch.nn.Parameter) -> None:
    optimizer = torch.optim.SGD([codebook], lr=0.1)
    codebook.grad = torch.zeros_like(codebook)
    codebook.grad[5] = 1
    optimizer.step()


def by_loading(codebook: torch.nn.Parameter) -> None:
    module = torch.nn.ParameterDict({"codebook": codebook})
    module.load_state_dict({"codebook": torch.randn(K, D)})


def by_poison(codebook: torch.nn.Parameter) -> None:
    codebook.data[0] = torch.nan
    codebook.data[-1, -1] = -0.0


@pytest.mark.parametrize("write", [by_data, by_numpy, by_view, by_step, by_loading, by_poison])
def test_what_is_written_is_seen(write: Callable[[torch.nn.Parameter], None]) -> None:
    x, codebook = torch.randn(200, D), torch.nn.Parameter(torch.randn(K, D))
    use(codebook, x)
    write(codebook)
    # near what was written too
    x = torch.cat([x, codebook.detach()[[0, 5, 7, 9, 1234, -1]]])
    assert_same_as_reference(x, codebook)
    use(codebook, x)
    assert_same_as_reference(x, codebook)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits(metric: str, dtype: torch.dtype) -> None:
    x, codebook = torch.randn(333, D).to(dtype), torch.randn(K, D).to(dtype)
    x[5] = torch.nan
    codebook[11:14] = codebook[10]
    use(codebook, x, metric)
    assert_same_as_reference(x, codebook, metric)
    # other vectors, far more of them, and other shapes of the same bytes
    assert_same_as_reference(torch.cat([codebook, torch.zeros(1, D)]).float(), codebook, metric)
    assert_same_as_reference(x, codebook[: K // 2], metric)
    assert_same_as_reference(x.reshape(-1, 3, D), codebook.expand(3, K, D), metric)


def test_one_vector_at_a_time() -> None:
    codebook = torch.randn(K, D)
    use(codebook, torch.randn(1, D))
    for x in torch.randn(20, 1, D):
        assert_same_as_reference(x, codebook)


def test_another_metric_and_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = torch.randn(100, D), torch.randn(K, D)
    use(codebook, x)
    assert_same_as_reference(x, codebook, "cosine")
    assert_same_as_reference(x, codebook, "dot")
    monkeypatch.setenv("VQKERNELS_ISA", "portable")
    assert_same_as_reference(x, codebook)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_KEPT_MIB", "1")
    x, codebooks = torch.randn(100, D), [torch.randn(K, D) for _ in range(20)]
    for codebook in codebooks:
        for _ in range(3):
            assert_same_as_reference(x, codebook)
        assert 0 < extension().kept_codes()["bytes"] <= 1 << 20
    # what would not fit with its tree is not remembered, and puts nothing else out
    before = extension().kept_codes()
    large = torch.randn(30_000, D)
    for _ in range(3):
        assert_same_as_reference(x, large)
    assert extension().kept_codes() == before


def test_training_keeps_nothing() -> None:
    """Codes that change between calls cost a look at a few of them, and no memory."""
    x, codebook = torch.randn(100, D), torch.randn(K, D)
    for _ in range(300):
        vqkernels.nearest_code(x, codebook, backend="cpu")
        codebook += 0.01
    kept = extension().kept_codes()
    assert kept["codes"] == 0
    assert 1 < kept["remembered"] <= 256


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = torch.randn(100, D), torch.randn(K, D)
    monkeypatch.setenv("VQKERNELS_KEPT_MIB", "0")
    for _ in range(3):
        assert_same_as_reference(x, codebook)
    assert extension().kept_codes() == {"codes": 0, "trees": 0, "bytes": 0, "remembered": 0}


@pytest.mark.parametrize("given", ["", "-1", "1.5", "many", "1" * 12])
def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VQKERNELS_KEPT_MIB", given)
    with pytest.raises(ValueError, match=r"^VQKERNELS_KEPT_MIB: expected a number of MiB, 0 or more, got '"):
        kept_bytes()


def test_many_threads_at_a_time() -> None:
    x, codebooks = torch.randn(64, D), [torch.randn(K, D) for _ in range(3)]
    truth = [vqkernels.nearest_code(x, codebook, backend="reference").indices for codebook in codebooks]
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(first, first + 60):
            found = vqkernels.nearest_code(x, codebooks[i % 3], backend="cpu").indices
            if not torch.equal(found, truth[i % 3]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the machine cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_looks_up() -> None:
    x, codebook = torch.randn(100, D), torch.randn(K, D)
    use(codebook, x)
    truth = vqkernels.nearest_code(x, codebook, backend="reference").indices
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        found = vqkernels.nearest_code(x, codebook, backend="cpu").indices
        os._exit(0 if torch.equal(found, truth) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
