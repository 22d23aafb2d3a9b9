"""A call of an adapter that raises changes nothing. Oracle: the state before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves
from zoo import ADAPTERS, make

import vqkernels.compat.vector_quantize_pytorch as vqp
from vqkernels.compat import seed_voken

BY_INDEX: dict[str, Any] = {
    "shape": torch.zeros(4, 9, dtype=torch.int64),
    "range": torch.full((4, 10), 16),
    "floats": torch.zeros(4, 10),
}
WEIGHTS: dict[str, Any] = {"tensor": torch.ones(5), "function": lambda total, count: torch.ones(3, 16)}


@pytest.mark.parametrize("given", BY_INDEX)
@pytest.mark.parametrize("name", ["VectorQuantize", "VectorQuantize-affine", "VectorQuantize-kmeans"])
def test_indices_that_do_not_fit(name: str, given: str) -> None:
    assert_refused(name, indices=BY_INDEX[given])


@pytest.mark.parametrize("given", BY_INDEX)
def test_indices_of_a_stack_that_do_not_fit(given: str) -> None:
    assert_refused("ResidualVQ", indices=torch.stack([BY_INDEX[given]] * 3, dim=-1))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_that_do_not_fit(weight: str) -> None:
    assert_refused("VectorQuantize", ema_update_weight=WEIGHTS[weight])


@pytest.mark.parametrize("name", ["VectorQuantize", "VectorQuantize-kmeans", "ResidualVQ", "HierarchicalVQ"])
def test_masks_that_do_not_fit(name: str) -> None:
    assert_refused(name, mask=torch.ones(4, 11, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: vqp.VectorQuantize(4, 6, in_place_codebook_optimizer=torch.optim.SGD),
            "in_place_codebook_optimizer: expected None for codes without parameters, got one",
        ),
        (
            lambda: vqp.BinaryMapper(1).log_prob(torch.zeros(1), one_hot=torch.ones(2).to(torch.float8_e4m3fn)),
            "one_hot: expected integers, .*, got torch.float8_e4m3fn",
        ),
        (
            lambda: vqp.VectorQuantize(4, 6)(torch.zeros(1, 3, 4), lens=torch.ones(1).to(torch.float8_e4m3fn)),
            "lens: expected integers, .*, got torch.float8_e4m3fn",
        ),
        (
            lambda: vqp.ResidualVQ(dim=4, codebook_size=8, num_quantizers=2, diveq=True, use_cosine_sim=True),
            "use_cosine_sim: expected False with diveq, got True",
        ),
        (
            lambda: vqp.ResidualVQ(dim=4, codebook_size=8, num_quantizers=2, diveq=True, use_cosine_sim=1),
            "use_cosine_sim: expected False with diveq, got True",
        ),
        (
            lambda: vqp.LFQ(codebook_size=4, num_codebooks=2, keep_num_codebooks_dim=0),
            "keep_num_codebooks_dim: expected True for 2 codebooks, got False",
        ),
        (
            lambda: vqp.ResidualVQ(
                dim=4, codebook_size=8, num_quantizers=2, implicit_neural_codebook=True, straight_through=True
            ),
            "straight_through: expected False with implicit_neural_codebook, got True",
        ),
        (
            lambda: vqp.ResidualVQ(
                dim=4, codebook_size=8, num_quantizers=2, beam_size=2, beam_score_quantizer_weights=[1.0, 1e300]
            ),
            r"beam_score_quantizer_weights: expected None or a sequence, each a number in .*, got \[1.0, 1e\+300\]",
        ),
        (
            lambda: vqp.LatentQuantize([5, 5], 8, commitment_loss_weight=-1e300),
            r"commitment_loss_weight: expected None or a number in .*, got -1e\+300",
        ),
        (
            lambda: vqp.FSQ([5, 5])(torch.zeros(1, 3, 2, device="meta")),
            "device: expected one device, got z on meta, module on cpu",
        ),
        (
            lambda: vqp.EvoLFQ(torch.nn.Identity(), torch.nn.Identity(), dim=4).uniform_crossover(
                torch.ones(3, 4).to(torch.float8_e5m2), torch.ones(3, 4)
            ),
            "parent1: expected integers, .*, got torch.float8_e5m2",
        ),
        (
            lambda: vqp.LFQ(dim=3, codebook_scale=1e300),
            r"codebook_scale: expected a number in \[1.17549e-38, 4.61169e\+18\], got 1e\+300",
        ),
        (
            lambda: vqp.LFQ(dim=3, soft_clamp_input_value=2**70),
            r"soft_clamp_input_value: expected None or a number in .*, got 1180591620717411303424",
        ),
        (
            lambda: vqp.ResidualFSQ(levels=[5, 4], num_quantizers=2, soft_clamp_input_value=[1.0, 1e-320]),
            r"soft_clamp_input_value: expected .*, got \[1.0, 1e-320\]",
        ),
        (
            lambda: vqp.ResidualLFQ(dim=2, codebook_size=4, num_quantizers=200),
            "num_quantizers: expected at most 127 halved scales, got 200",
        ),
    ],
    ids=[
        "untrained",
        "one-hot",
        "lens",
        "cosine",
        "cosine-1",
        "keep-0",
        "straight-through",
        "beam",
        "commitment",
        "meta",
        "float8",
        "scale",
        "clamp",
        "clamps",
        "layers",
    ],
)
def test_what_was_not_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


LARGE: dict[str, Callable[[], object]] = {
    "codebook_size": lambda: vqp.LFQ(dim=62)(torch.randn(1, 2, 62)),
    "codebook_size of layers": lambda: vqp.ResidualLFQ(dim=4, codebook_size=2**62, num_quantizers=1)(
        torch.ones(1, 4)
    ),
    "codebook_size of Open-MAGVIT2": lambda: seed_voken.LFQ(dim=62)(torch.randn(1, 62, 2, 2)),
    "codebook_size of a table": lambda: vqp.LFQ(dim=63).codebook,
    "codebook_size of another table": lambda: seed_voken.LFQ(dim=63).codebook,
    "levels": lambda: vqp.FSQ([256] * 7).implicit_codebook,
    "levels of values": lambda: vqp.LatentQuantize([256] * 7, 7).implicit_codebook,
}


@pytest.mark.parametrize("call", LARGE)
def test_tables_of_more_numbers_than_addresses(call: str) -> None:
    with pytest.raises(ValueError, match=rf"^{call.split()[0]}: expected at most 2\^45 numbers in a table, got "):
        LARGE[call]()


@pytest.mark.parametrize("module", [vqp.LFQ(dim=62), seed_voken.LFQ(dim=62)])
def test_signs_without_entropies_know_no_limit(module: torch.nn.Module) -> None:
    x = torch.randn(1, 62, 2, 2)
    quantized, *_ = module.eval()(x)
    assert torch.equal(quantized, torch.where(x > 0, 1.0, -1.0))


def evolution(decoder: torch.nn.Module) -> vqp.EvoLFQ:
    return vqp.EvoLFQ(torch.nn.Identity(), decoder, dim=3, pop_size=4)


class Constant(torch.nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Any:
        return self.value


# calls with a function that returns the same whatever it is given
HANDED_OVER: dict[str, Callable[[Constant], Any]] = {
    "decoder": lambda function: evolution(function).step(torch.ones(4, 3), lambda decoded, bits: decoded.sum(dim=1)),
    "fitness_fn": lambda function: evolution(torch.nn.Identity()).step(torch.ones(4, 3), function),
    "init_fn": lambda function: vqp.SimVQ(4, 6, init_fn=function),
    "codebook_transform": lambda function: vqp.SimVQ(4, 6, codebook_transform=function)(torch.ones(1, 2, 4)),
    "codebook_transform_fn": lambda function: vqp.VectorQuantize(4, 6)(
        torch.ones(1, 2, 4), codebook_transform_fn=function
    ),
    "in_place_codebook_optimizer": lambda function: vqp.VectorQuantize(
        4, 6, learnable_codebook=True, ema_update=False, in_place_codebook_optimizer=function
    ),
    "in_place_codebook_optimizer of values": lambda function: vqp.LatentQuantize(
        [5, 5], 4, in_place_codebook_optimizer=function
    ),
}


@pytest.mark.parametrize("value", [None, "a", [None], torch.ones(4).to_sparse()], ids=repr)
@pytest.mark.parametrize("call", HANDED_OVER)
def test_functions_that_return_something_else(call: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{call.split()[0]}: expected .*, got "):
        HANDED_OVER[call](Constant(value))


@pytest.mark.parametrize("call", ["fitness_fn", "init_fn", "codebook_transform", "codebook_transform_fn"])
def test_functions_that_return_another_shape(call: str) -> None:
    with pytest.raises(ValueError, match=rf"^{call}: expected .*, got "):
        HANDED_OVER[call](Constant(torch.ones(4, 2, 5)))


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0, 4.0], torch.arange(4), torch.arange(4.0).double()], ids=repr)
def test_fitness_comes_as_any_numbers(value: Any) -> None:
    fitness = evolution(torch.nn.Identity()).step(torch.ones(4, 3), Constant(value))[1]
    assert fitness.is_floating_point()
    assert torch.equal(fitness, torch.as_tensor(value).to(fitness.dtype))


@pytest.mark.parametrize("shape", [(), (0, 3), (4, 2)])
def test_a_population_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^pop_bits: expected .*, got shape"):
        next(evolution(torch.nn.Identity()).evolve(Constant(torch.ones(4)), torch.ones(shape)))


@pytest.mark.parametrize(
    "module",
    [
        vqp.HierarchicalVQ(dim=4, codebook_size=6, scales=(1, 2), channel_first=False),
        vqp.VectorQuantize(4, 6, codebook_dim=3),
        vqp.ResidualVQ(dim=4, codebook_size=6, num_quantizers=2),
        vqp.ResidualLFQ(dim=4, codebook_size=4, num_quantizers=2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_mask_of_inference_mode(module: torch.nn.Module) -> None:
    x = torch.randn(2, 2, 4, requires_grad=True)
    with torch.inference_mode():
        mask = torch.tensor([[True, True], [True, False]])
    module(x, mask=mask)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.any(dim=2)[mask].all()


EMPTY: dict[str, Callable[[], Any]] = {
    "BinaryMapper": lambda: vqp.BinaryMapper(2)(torch.randn(0, 2)),
    "FSP": lambda: vqp.FSP([3, 3])(torch.randn(2, 0, 2)),
    "LatentQuantize": lambda: vqp.LatentQuantize([3, 3], 2)(torch.randn(2, 2, 0)),
    "ResidualVQ": lambda: vqp.ResidualVQ(dim=4, codebook_size=6, num_quantizers=2, beam_size=2)(torch.randn(2, 0, 4)),
    "VectorQuantize": lambda: vqp.VectorQuantize(
        4, 6, orthogonal_reg_weight=1.0, orthogonal_reg_active_codes_only=True
    )(torch.randn(2, 0, 4)),
}


@pytest.mark.parametrize("call", EMPTY)
def test_results_of_nothing_are_finite(call: str) -> None:
    results = [result for result in tree_leaves(EMPTY[call]()) if isinstance(result, torch.Tensor)]
    assert len(results) > 1
    assert all(result.isfinite().all() for result in results)


def assert_refused(name: str, **options: Any) -> None:
    module = make(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises((TypeError, ValueError, IndexError)):
        module(torch.randn(ADAPTERS[name].shape), **options)
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert [key for key, tensor in before.items() if not torch.equal(after[key], tensor)] == []
