"""The scalar quantizers against the installed original. Oracle: the original, in float64 for accuracy."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from pairs import adapters, assert_same_results, build, originals, submodule
from rounding import farthest, in_their_last_bits

from vqkernels.testing import assert_bitwise_equal, assert_within_budget

# class, options, shape of the input, options of the call
Case = tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]

FSQ_CASES: list[Case] = [
    ("FSQ", {"levels": [8, 5, 5, 5]}, (2, 300, 4), {}),
    ("FSQ", {"levels": (4, 7), "dim": 6, "num_codebooks": 2}, (2, 50, 6), {}),
    ("FSQ", {"levels": [3, 3], "dim": 5, "projection_has_bias": False, "channel_first": True}, (2, 5, 40), {}),
    ("FSQ", {"levels": [5, 4, 3]}, (2, 3, 4, 5), {}),
    ("FSQ", {"levels": [6], "keep_num_codebooks_dim": True}, (2, 3, 1), {}),
    ("FSQ", {"levels": [2, 3, 4], "preserve_symmetry": True}, (2, 100, 3), {}),
    ("FSQ", {"levels": [5, 8], "bound_hard_clamp": True}, (2, 100, 2), {}),
    ("FSQ", {"levels": [2, 8], "bound_hard_clamp": True, "preserve_symmetry": True}, (2, 100, 2), {}),
    ("FSQ", {"levels": [5, 5, 5], "orthogonal_rotation": True, "dim": 4}, (2, 60, 4), {}),
    ("FSQ", {"levels": [5, 5], "force_quantization_f32": False}, (1, 60, 2), {}),
    ("ResidualFSQ", {"levels": [8, 5, 3], "num_quantizers": 3}, (2, 50, 3), {"return_all_codes": True}),
    ("ResidualFSQ", {"levels": [4, 4], "num_quantizers": 2, "dim": 7}, (2, 50, 7), {}),
    ("ResidualFSQ", {"levels": [5, 5], "num_quantizers": 2, "dim": 7, "is_channel_first": True}, (2, 7, 3, 4), {}),
    (
        "ResidualFSQ",
        {"levels": [5, 5], "num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": [2.0, 3.0]},
        (2, 50, 2),
        {},
    ),
    ("ResidualFSQ", {"levels": [5, 5], "num_quantizers": 2, "orthogonal_rotation": True}, (2, 50, 2), {}),
    (
        "GroupedResidualFSQ",
        {"dim": 8, "groups": 2, "levels": [5, 5], "num_quantizers": 3},
        (2, 9, 8),
        {"return_all_codes": True},
    ),
]
LFQ_CASES: list[Case] = [
    ("LFQ", {"dim": 6}, (2, 40, 6), {"return_loss_breakdown": True}),
    ("LFQ", {"dim": 1}, (2, 40, 1), {}),
    ("LFQ", {"dim": 12}, (2, 30, 12), {"inv_temperature": 0.3, "return_loss_breakdown": True}),
    ("LFQ", {"dim": 11}, (2, 30, 11), {"inv_temperature": 3.0, "return_loss_breakdown": True}),
    ("LFQ", {"dim": 7, "codebook_size": 16, "commitment_loss_weight": 0.3}, (2, 40, 7), {}),
    ("LFQ", {"codebook_size": 16, "num_codebooks": 2}, (2, 8, 3, 4), {"inv_temperature": 2.0}),
    ("LFQ", {"dim": 5, "codebook_size": 8, "channel_first": True}, (2, 5, 9), {}),
    ("LFQ", {"dim": 4, "channel_first": False, "keep_num_codebooks_dim": True}, (2, 9, 4), {}),
    ("LFQ", {"dim": 6, "spherical": True, "codebook_scale": 0.5}, (2, 40, 6), {"inv_temperature": 10.0}),
    ("LFQ", {"dim": 6, "orthogonal_rotation": True, "diversity_gamma": 2.5}, (2, 40, 6), {}),
    ("LFQ", {"dim": 6, "soft_clamp_input_value": 1.5, "entropy_loss_weight": 0.7}, (2, 40, 6), {}),
    ("LFQ", {"dim": 5, "codebook_size": 8, "cosine_sim_project_in": True}, (2, 40, 5), {}),
    ("LFQ", {"dim": 4, "has_projections": True, "projection_has_bias": False}, (2, 40, 4), {}),
    ("LFQ", {"dim": 4, "experimental_softplus_entropy_loss": True, "entropy_loss_offset": 1.0}, (2, 40, 4), {}),
    ("LFQ", {"dim": 4, "straight_through_activation": torch.nn.Tanh()}, (2, 40, 4), {}),
    ("LFQ", {"dim": 4, "entropy_loss_weight": 0.0, "commitment_loss_weight": 1.0}, (2, 40, 4), {}),
    ("ResidualLFQ", {"dim": 7, "codebook_size": 16, "num_quantizers": 3}, (2, 30, 7), {}),
    (
        "ResidualLFQ",
        {"dim": 4, "codebook_size": 16, "num_quantizers": 3, "soft_clamp_input_value": 2.0},
        (2, 30, 4),
        {"return_all_codes": True},
    ),
    ("ResidualLFQ", {"dim": 4, "codebook_size": 16, "num_quantizers": 2}, (2, 4, 3, 5), {}),
    ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 2, "spherical": True}, (2, 30, 6), {}),
    (
        "GroupedResidualLFQ",
        {"dim": 8, "groups": 2, "codebook_size": 8, "num_quantizers": 3},
        (2, 9, 8),
        {"return_all_codes": True},
    ),
]
OTHER_CASES: list[Case] = [
    ("FSP", {"levels": [8, 5, 5], "quantize_rate": 0.3}, (2, 50, 3), {}),
    ("FSP", {"levels": [8, 5], "dim": 7, "channel_first": True, "vector_norm": "kurt"}, (2, 7, 3, 4), {"eps": 1e-3}),
    ("FSP", {"levels": [4, 4], "act_name": "sigmoid", "need_inv_act": True, "vector_norm": "var"}, (2, 50, 2), {}),
    ("FSP", {"levels": [4, 4], "act_name": "normal", "vector_norm": "var_sigmoid"}, (50, 2), {}),
    ("FSP", {"levels": [9, 4], "act_name": "laplace", "vector_norm": "var_laplace", "quantize_rate": 1}, (50, 2), {}),
    ("FSP", {"levels": [4, 4], "act_name": "cauchy", "need_inv_act": True, "vector_norm": "none"}, (2, 50, 2), {}),
    ("LatentQuantize", {"levels": [5, 4, 3], "dim": 7}, (2, 7, 3, 4), {}),
    ("LatentQuantize", {"levels": [5, 4, 3], "dim": 6, "num_codebooks": 2}, (2, 6, 9), {}),
    ("LatentQuantize", {"levels": 5, "dim": 3, "codebook_dim": 3, "optimize_values": False}, (2, 3, 9), {}),
    ("LatentQuantize", {"levels": [3], "dim": 1, "keep_num_codebooks_dim": True}, (2, 1, 9), {}),
    ("Sequential", {}, (2, 9, 4), {}),
]
CASES = [*FSQ_CASES, *LFQ_CASES, *OTHER_CASES]
NAMES = sorted({name for name, *_ in CASES} | {"EvoLFQ", "BinaryMapper"})

each_case = pytest.mark.parametrize(
    ("name", "options", "shape", "call_options"),
    CASES,
    ids=[f"{name}-{number}" for number, (name, *_) in enumerate(CASES)],
)


def build_case(name: str, options: dict[str, Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    if name != "Sequential":
        return build(name, **options)
    torch.manual_seed(1)
    linear = torch.nn.Linear(4, 3)
    quantizers = build("LFQ", dim=3)
    return adapters.Sequential(linear, quantizers[0]), originals.Sequential(linear, quantizers[1])


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", lambda t: torch.rand(t.shape).to(t.dtype))


@each_case
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_results_and_gradients(
    name: str, options: dict[str, Any], shape: tuple[int, ...], call_options: dict[str, Any], training: bool
) -> None:
    adapter, original = build_case(name, options)
    # the gradient of the loss of LatentQuantize differs on purpose
    only_first = name == "LatentQuantize"
    assert_same_results(
        adapter.train(training), original.train(training), torch.randn(shape), only_first, **call_options
    )


@each_case
def test_state_dicts_load_both_ways(
    name: str, options: dict[str, Any], shape: tuple[int, ...], call_options: dict[str, Any]
) -> None:
    adapter, original = build_case(name, options)
    ours, theirs = adapter.state_dict(), original.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert_bitwise_equal(ours[key], tensor)  # one seed, one initialisation
    moved = {key: tensor + 1 for key, tensor in theirs.items()}
    adapter.load_state_dict(moved, strict=True)
    original.load_state_dict(adapter.state_dict(), strict=True)
    for key, tensor in original.state_dict().items():
        assert_bitwise_equal(tensor, moved[key])


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [(name, options, shape) for name, options, shape, _ in CASES if name in ("FSQ", "LFQ", "FSP", "LatentQuantize")],
)
def test_decoding(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    adapter, original = (module.eval() for module in build(name, **options))
    x = torch.randn(shape)
    values, indices = adapter(x)[:2]
    decoded = adapter.indices_to_codes(indices)
    reference = original.indices_to_codes(indices)
    torch.testing.assert_close(decoded, reference, rtol=0, atol=8 * torch.finfo(torch.float32).eps)
    if not options.get("orthogonal_rotation") and not adapter.has_projections and not options.get("need_inv_act"):
        assert_bitwise_equal(decoded, values)
    if hasattr(original, "implicit_codebook") and name == "FSQ":
        assert_bitwise_equal(adapter.implicit_codebook, original.implicit_codebook)
    if name == "LFQ":
        assert_bitwise_equal(adapter.codebook, original.codebook)
        assert adapter.dtype == original.dtype


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ResidualFSQ", {"levels": [5, 5], "num_quantizers": 5}),
        ("ResidualLFQ", {"codebook_size": 8, "num_quantizers": 5}),
        ("GroupedResidualFSQ", {"levels": [5, 5], "num_quantizers": 5, "groups": 2}),
        ("GroupedResidualLFQ", {"codebook_size": 8, "num_quantizers": 5, "groups": 2}),
    ],
)
@pytest.mark.parametrize(("cutoff", "multiple"), [(0, 1), (1, 2), (2, 4)])
def test_depth_dropout(name: str, options: dict[str, Any], seed: int, cutoff: int, multiple: int) -> None:
    adapter, original = build(
        name,
        dim=6,
        quantize_dropout=True,
        quantize_dropout_cutoff_index=cutoff,
        quantize_dropout_multiple_of=multiple,
        **options,
    )
    x = torch.randn(2, 7, 6)
    results = []
    for module in (adapter, original):
        torch.manual_seed(seed)
        results.append(module(x))
    (quantized, indices, *losses), (their_quantized, their_indices, *their_losses) = results
    assert torch.equal(indices, their_indices)
    torch.testing.assert_close(quantized, their_quantized)
    torch.testing.assert_close(losses, their_losses)
    coarse = adapter.get_output_from_indices(indices)
    torch.testing.assert_close(coarse, quantized)
    torch.testing.assert_close(coarse, original.get_output_from_indices(indices))


@pytest.mark.parametrize("name", ["FSQ", "LFQ"])
def test_coarse_indices_need_dropout(name: str) -> None:
    sizes: dict[str, Any] = {"levels": [5, 5]} if name == "FSQ" else {"codebook_size": 4}
    adapter, original = build(f"Residual{name}", dim=2, num_quantizers=3, quantize_dropout=True, **sizes)
    indices = torch.randint(0, 4, (2, 7, 2))
    torch.testing.assert_close(adapter.get_codes_from_indices(indices), original.get_codes_from_indices(indices))
    strict, _ = build(f"Residual{name}", dim=2, num_quantizers=3, **sizes)
    with pytest.raises(ValueError, match=r"indices: expected \[\.\.\., Q\] with Q 3, got Q = 2"):
        strict.get_codes_from_indices(indices)


@pytest.mark.parametrize("training", [True, False])
def test_binary_mapper_draws_the_same_words(training: bool) -> None:
    adapter, original = (module.train(training) for module in build("BinaryMapper", bits=6))
    logits = torch.randn(3, 50, 6)
    words = []
    for module in (adapter, original):
        torch.manual_seed(7)
        words.append(module(logits, return_indices=True, temperature=0.7)[1])
    assert torch.equal(*words)
    assert torch.equal(adapter.codes, original.codes)
    for options in ({"indices": words[0]}, {"one_hot": torch.nn.functional.one_hot(words[0], 64)}):
        for sum_bits in (True, False):
            ours, theirs = (m.log_prob(logits, sum_bits=sum_bits, **options) for m in (adapter, original))
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_binary_mapper_value_and_gradient(reduce: bool, threshold: float) -> None:
    """The truth is written out from the original's log probabilities, which run in float64, unlike its forward."""
    adapter, original = build("BinaryMapper", bits=5, kl_loss_threshold=threshold)
    logits, weight = torch.randn(7, 3, 5), torch.randn(7, 3, 32)
    options = {"deterministic": True, "straight_through": True, "calc_aux_loss": True, "temperature": 3.0}

    def results(module: torch.nn.Module, logits: torch.Tensor = logits) -> list[torch.Tensor]:
        x = logits.clone().requires_grad_()
        one_hot, loss = module(x, reduce_aux_kl_loss=reduce, **options)
        ((one_hot * weight).sum() + loss.sum()).backward()
        assert torch.equal(one_hot.round(), one_hot.detach()) or module is original
        return [one_hot.detach(), loss.detach(), x.grad]

    x = logits.double().requires_grad_()
    words = torch.arange(32).expand(7, 3, 32)
    p = original.log_prob(x[..., None, :].expand(7, 3, 32, 5), indices=words).exp()
    loss = original.calc_aux_loss(x, reduce_aux_kl_loss=reduce)
    ((p * weight).sum() + loss.sum()).backward()
    one_hot = torch.nn.functional.one_hot(p.argmax(-1), 32)
    runs = [results(original, moved) for (moved,) in in_their_last_bits([logits])]
    for got, exact, *plain in zip(results(adapter), [one_hot, loss, x.grad], *runs, strict=True):
        truth = exact.detach().double() + 1
        assert_within_budget(got + 1, truth, farthest(truth, [run + 1 for run in plain]), factor=4)


@pytest.mark.parametrize("is_sign", [True, False])
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_evolution(is_sign: bool, num_codebooks: int) -> None:
    width = 4 * num_codebooks
    torch.manual_seed(0)
    parts = torch.nn.Linear(8, width), torch.nn.Linear(width, 8)
    pair = [
        library.EvoLFQ(*parts, codebook_size=16, num_codebooks=num_codebooks, pop_size=10, mutation_rate=0.2)
        for library in (adapters, originals)
    ]
    x = torch.randn(4, 8)
    histories = []
    for module in pair:
        torch.manual_seed(1)
        # the lookup is the mutated sum: fitness that needs the decoder and the genes
        run = module.evolve(
            lambda decoded, bits: decoded[:, 0] + bits.sum(-1),
            module.init_population_from_data(x, is_sign=is_sign),
            is_sign=is_sign,
            generations=5,
            batch_size=3,
        )
        histories.append(list(run))
        assert torch.equal(module.decode_bits(module.encode(x)), module.eval()(x).reconstructed)
        module.train()
    for ours, theirs in zip(*histories, strict=True):
        assert torch.equal(ours.pop_bits, theirs.pop_bits)
        assert ours.best_fitness == theirs.best_fitness


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name: str) -> None:
    """Names, order and kind of the parameters, and their defaults."""
    ours, theirs = getattr(adapters, name), getattr(originals, name)
    for method in ("__init__", "forward"):
        expected = inspect.signature(getattr(theirs, method)).parameters
        actual = inspect.signature(getattr(ours, method)).parameters
        assert [(p.name, p.kind) for p in actual.values()] == [(p.name, p.kind) for p in expected.values()]
        for key, parameter in expected.items():
            default = parameter.default
            if not isinstance(default, torch.nn.Module):
                assert actual[key].default == default, key


@pytest.mark.parametrize("name", NAMES)
def test_public_attributes(name: str) -> None:
    """Whatever a plain instance of the original offers, public or among the names others are known to use."""
    sizes: dict[str, dict[str, Any]] = {
        "FSQ": {"levels": [5, 5]},
        "FSP": {"levels": [5, 5]},
        "LFQ": {"dim": 4},
        "LatentQuantize": {"levels": [5, 5], "dim": 2},
        "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 2},
        "ResidualLFQ": {"dim": 2, "codebook_size": 4, "num_quantizers": 2},
        "GroupedResidualFSQ": {"dim": 4, "groups": 2, "levels": [5, 5], "num_quantizers": 2},
        "GroupedResidualLFQ": {"dim": 4, "groups": 2, "codebook_size": 4, "num_quantizers": 2},
        "EvoLFQ": {"encoder": torch.nn.Identity(), "decoder": torch.nn.Identity(), "dim": 4},
        "BinaryMapper": {},
        "Sequential": {},
    }
    if name == "Sequential":
        adapter, original = build_case(name, {})
    else:
        adapter, original = build(name, **sizes[name])
    private = {"_levels", "_basis", "_scale_and_shift", "_scale_and_shift_inverse", "_indices_to_codes"}
    offered = [a for a in dir(original) if not a.startswith("_") or (a in private and name == "FSQ")]
    # takes a shape in the format of einops
    offered = [attribute for attribute in offered if attribute != "quantize_and_project"]
    missing = [attribute for attribute in offered if not hasattr(adapter, attribute)]
    assert missing == []
    for attribute in offered:
        value = getattr(original, attribute)
        if isinstance(value, (bool, int, float)):
            assert getattr(adapter, attribute) == value, attribute


def test_quantizer_classes_of_sequential() -> None:
    ours, theirs = (
        {cls.__name__ for cls in module.QUANTIZE_KLASSES}
        for module in (importlib.import_module(f"{adapters.__name__}.utils"), submodule("utils"))
    )
    assert ours == theirs & set(adapters.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_submodule_paths(name: str) -> None:
    path = adapters._SUBMODULES[name]
    assert getattr(submodule(path), name) is getattr(originals, name)
    module = importlib.import_module(f"{adapters.__name__}.{path}")
    assert getattr(module, name) is getattr(adapters, name)
