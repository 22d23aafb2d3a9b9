"""What the scalar quantizers do differently from the original on purpose: one test for each row of
``vqkernels/compat/README.md`` (the losses of LFQ: ``test_lfq_losses.py``). Oracles are stated per test; none is the
original.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels.compat.vector_quantize_pytorch._residual import DepthDropout
from vqkernels.testing import assert_bitwise_equal

each = pytest.mark.parametrize

# everything that maps vectors [..., 4] to values and indices, and back
INVERTIBLE: dict[str, dict[str, Any]] = {
    "FSQ": {"levels": [5, 5, 5, 5]},
    "LFQ": {"dim": 4},
    "FSP": {"levels": [5, 4, 5, 4]},
}
STACKS: dict[str, dict[str, Any]] = {
    "ResidualFSQ": {"dim": 4, "levels": [5, 5, 5, 5], "num_quantizers": 3},
    "ResidualLFQ": {"dim": 4, "codebook_size": 16, "num_quantizers": 3},
}


def make(name: str, **options: Any) -> Any:
    return getattr(adapters, name)(**{**INVERTIBLE.get(name, {}), **STACKS.get(name, {}), **options})


# implicit codebooks


def test_codebooks_are_not_built() -> None:
    """Sizes whose codebooks no machine holds, quantized and decoded."""
    fsq, lfq = adapters.FSQ([4] * 31), adapters.LFQ(codebook_size=2**62).eval()
    for module, dim in ((fsq, 31), (lfq, 62)):
        x = torch.randn(2, 9, dim)
        values, indices = module(x)[:2]
        assert indices.dtype == torch.int64
        assert_bitwise_equal(module.indices_to_codes(indices), values)
    with pytest.raises(ValueError, match=r"levels: expected at most 2\*\*63 codes"):
        adapters.FSQ([4] * 32)(torch.randn(1, 2, 32))
    assert adapters.FSQ([4] * 32, return_indices=False)(torch.randn(1, 2, 32))[1] is None


@each("name", ["FSQ", "ResidualFSQ", "LFQ", "ResidualLFQ", "FSP"])
def test_decoding_builds_no_codebook(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(name).eval()
    for cls, attribute in ((adapters.FSQ, "implicit_codebook"), (adapters.LFQ, "codebook")):
        monkeypatch.delattr(cls, attribute)
    indices = module(torch.randn(2, 9, 4))[1]
    getattr(module, "get_output_from_indices", getattr(module, "indices_to_codes", None))(indices)


def test_indices_of_many_codes() -> None:
    """More codes than float32 has integers."""
    for module in (adapters.FSQ([64] * 5), adapters.FSP([64] * 5).eval()):
        values, indices = module(torch.randn(1, 1000, 5))[:2]
        assert indices.dtype == torch.int32
        assert_bitwise_equal(module.indices_to_codes(indices), values)


# values and indices


@each("name", INVERTIBLE)
@each("training", [True, False])
def test_values_are_codes_to_the_bit(name: str, training: bool) -> None:
    module = make(name, quantize_rate=1.0) if name == "FSP" else make(name)
    values, indices = module.train(training)(3 * torch.randn(7, 50, 4))[:2]
    assert_bitwise_equal(module.indices_to_codes(indices), values.detach())


@each("name", STACKS)
@each("training", [True, False])
def test_stacks_decode_to_the_bit(name: str, training: bool) -> None:
    module = make(name).train(training)
    values, indices = module(3 * torch.randn(7, 50, 4))[:2]
    assert_bitwise_equal(module.get_output_from_indices(indices), values.detach())


@each("levels", [1024, 2001])
def test_outer_levels_stay_in_range(levels: int) -> None:
    """Far vectors have the outermost level."""
    module = adapters.FSQ([levels, levels])
    indices = module(torch.tensor([[[-30.0, -30.0], [30.0, 30.0]]]))[1]
    assert indices.tolist() == [[0, levels**2 - 1]]


@each("options", [{}, {"preserve_symmetry": True}])
def test_nan_has_an_index_in_range(options: dict[str, Any]) -> None:
    module = adapters.FSQ([5, 5], **options)
    values, indices = module(torch.tensor([[[torch.nan, 30.0], [0.0, 0.0]]]))
    assert indices.tolist() == [[20, 12]]
    assert values.isnan().tolist() == [[[True, False], [False, False]]]


@each("preserve_symmetry", [True, False])
def test_rotated_codes_have_their_indices(preserve_symmetry: bool) -> None:
    module = adapters.FSQ([5, 5, 5], preserve_symmetry=preserve_symmetry, orthogonal_rotation=True)
    indices = torch.arange(125, dtype=torch.int32)[None]
    assert torch.equal(module.codes_to_indices(module.indices_to_codes(indices)), indices)
    values, indices = module(torch.randn(1, 50, 3))
    assert torch.equal(module.codes_to_indices(values), indices)


@each("probability", [0.1, 0.9])
def test_noise_dropout_is_a_probability(probability: float) -> None:
    """Six standard deviations of the binomial around its mean."""
    module = adapters.FSQ([5, 5], preserve_symmetry=True, noise_dropout=probability)
    x = 0.3 * torch.randn(1, 10_000, 2)
    noisy, clean = module(x)[0], module.eval()(x)[0]
    moved = (noisy - clean).abs()
    spread = (probability * (1 - probability) / moved.numel()) ** 0.5
    # noise that points out of [-1, 1] is lost on the outer levels
    inner = clean.abs() < 1
    assert abs((moved[inner] > 0).float().mean().item() - probability) < 6 * spread / inner.float().mean().item()
    assert moved.max() <= 0.5


@each("name", ["FSQ", "LFQ"])
def test_vectors_without_a_batch(name: str) -> None:
    module = make(name)
    x = torch.randn(9, 4)
    assert_bitwise_equal(module(x)[0], module(x[None])[0][0])


# precision


def test_cpu_autocast_leaves_quantization_alone() -> None:
    """The same indices with and without: the rotation would be a bfloat16 product."""
    x = torch.randn(4, 500, 4)
    for module in (make("FSQ", orthogonal_rotation=True), make("LFQ", orthogonal_rotation=True)):
        plain = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = module(x)
        for a, b in zip(mixed, plain, strict=True):
            assert_bitwise_equal(a, b)


@each("name", [*INVERTIBLE, *STACKS])
@each("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_modules_decode(name: str, dtype: torch.dtype) -> None:
    """Same indices as in float32, same dtype in and out, with and without projections."""
    x = torch.randn(2, 9, 4).to(dtype)
    module = make(name).eval()
    expected = module(x.float())[1]
    values, indices = module.to(dtype)(x)[:2]
    assert torch.equal(indices, expected)
    assert values.dtype == dtype
    projected = (make(name, dim=6, codebook_size=16) if name == "LFQ" else make(name, dim=6)).to(dtype).eval()
    values, indices = projected(torch.randn(2, 9, 6).to(dtype))[:2]
    decode = getattr(projected, "indices_to_codes", None) or projected.get_output_from_indices
    assert decode(indices).dtype == values.dtype == dtype


# residual stacks


@each("options", [{"spherical": True}, {"orthogonal_rotation": True}, {"spherical": True, "dim": 6}])
def test_residual_lfq_decodes(options: dict[str, Any]) -> None:
    module = make("ResidualLFQ", **options).eval()
    values, indices, _ = module(torch.randn(2, 9, options.get("dim", 4)))
    torch.testing.assert_close(module.get_output_from_indices(indices), values)


@each("options", [{}, {"dim": 6}, {"orthogonal_rotation": True}])
@each("shape", [(7,), (3, 5), (4, 5), (2, 3, 4)])
def test_channel_first_residual_fsq(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Oracle: the same vectors, channel last."""
    torch.manual_seed(0)
    first = make("ResidualFSQ", is_channel_first=True, **options)
    last = make("ResidualFSQ", **options)
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, options.get("dim", 4), *shape)
    values, indices, codes = first(x, return_all_codes=True)
    expected = last(x.movedim(1, -1).flatten(1, -2), return_all_codes=True)
    assert torch.equal(indices.movedim(1, -1).flatten(1, -2), expected[1])
    assert torch.equal(codes.flatten(2, -2), expected[2])
    torch.testing.assert_close(values.movedim(1, -1).flatten(1, -2), expected[0])
    torch.testing.assert_close(first.get_output_from_indices(indices), values)


@each("options", [{}, {"dim": 6}, {"quantize_dropout": True}])
def test_images_in_residual_lfq(options: dict[str, Any]) -> None:
    """Oracle: the same vectors as sequences."""
    module = make("ResidualLFQ", **options)
    x = torch.randn(2, options.get("dim", 4), 3, 5)
    values, indices, losses = module(x, rand_quantize_dropout_fixed_seed=1)
    expected = module(x.movedim(1, -1).flatten(1, 2), rand_quantize_dropout_fixed_seed=1)
    assert torch.equal(indices.flatten(1, 2), expected[1])
    torch.testing.assert_close(values.movedim(1, -1).flatten(1, 2), expected[0])
    torch.testing.assert_close(losses, expected[2])
    torch.testing.assert_close(module.get_output_from_indices(indices), values)


@each("dim", [8, 6])
@each("name", STACKS)
def test_grouped_images(name: str, dim: int) -> None:
    module = getattr(adapters, f"Grouped{name}")(groups=2, accept_image_fmap=True, **{**STACKS[name], "dim": dim})
    x = torch.randn(2, dim, 3, 5)
    values, indices = module(x)[:2]
    assert values.shape == x.shape
    torch.testing.assert_close(module.get_output_from_indices(indices), values)


@each("name", STACKS)
def test_channel_last_of_any_rank(name: str) -> None:
    module = make(name, **({"channel_first": False} if name == "ResidualLFQ" else {}))
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(module(x)[1].flatten(1, 2), module(x.flatten(1, 2))[1])


@each("name", STACKS)
def test_index_dtype_does_not_depend_on_dropout(name: str) -> None:
    module = make(name, quantize_dropout=True)
    x = torch.randn(1, 3, 4)
    dtypes = {module(x, rand_quantize_dropout_fixed_seed=seed)[1].dtype for seed in range(8)}
    assert len(dtypes) == 1


@each("name", STACKS)
def test_no_random_number_without_dropout(name: str) -> None:
    module = getattr(adapters, f"Grouped{name}")(groups=1, **STACKS[name])
    before = torch.get_rng_state()
    module(torch.randn(1, 3, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_depth_dropout_rounds_up() -> None:
    depths = {DepthDropout(6, True, 1, 4).depth(seed) for seed in range(50)}
    assert depths == {4, 6}


# latent quantization, perturbation, evolution


def learned() -> Any:
    module = adapters.LatentQuantize(levels=[3, 4], dim=2)
    with torch.no_grad():
        module.values_per_latent[0].copy_(torch.tensor([0.4, -0.7, -0.1]))
        module.values_per_latent[1].copy_(torch.tensor([0.8, -0.6, 0.1, -0.3]))
    return module


def test_latent_quantization_decodes_learned_values() -> None:
    module = learned()
    values, indices, _ = module(torch.randn(2, 2, 50))
    assert_bitwise_equal(module.indices_to_codes(indices), values.detach())
    assert torch.equal(module.codes_to_indices(module.implicit_codebook), torch.arange(12, dtype=torch.int32))


@each("levels", [[7, 7], [11, 6], [49, 49]])
def test_latent_indices_are_not_truncated(levels: list[int]) -> None:
    """Oracle: the position of the value among all values of its entry."""
    module = adapters.LatentQuantize(levels=levels, dim=2)
    out, indices, _ = module(torch.rand(1, 2, 2000) - 0.5)
    position = [(out[:, d, :, None] - v).abs().argmin(-1) for d, v in enumerate(module.values_per_latent)]
    assert torch.equal(indices.long(), position[0] + levels[0] * position[1])


@each("value", [torch.inf, -torch.inf, torch.nan])
def test_latent_entries_that_are_not_finite(value: float) -> None:
    out, indices, _ = adapters.LatentQuantize([3, 7], 2)(torch.tensor([[[value], [0.5]]]))
    assert indices.tolist() == [[18]]
    assert out.isnan().tolist() == [[[True], [False]]]


def test_latent_losses_move_one_side_each() -> None:
    """Closed form: the gradients of mean squared differences, to the vectors and to the values."""
    module = learned()
    z = torch.randn(1, 2, 30, requires_grad=True)
    out, indices, loss = module(z)
    loss.backward()
    difference = (z - out).detach()
    torch.testing.assert_close(z.grad, 0.1 * 2 * difference / difference.numel())
    level = indices % 3
    expected = torch.stack([-0.2 * difference[:, 0][level == k].sum() / difference.numel() for k in range(3)])
    torch.testing.assert_close(module.values_per_latent[0].grad, expected)


def test_in_place_optimizer_moves_values_before_quantizing() -> None:
    """One step of gradient descent of the mean squared difference, then a lookup in the new values."""
    module = adapters.LatentQuantize([3], 1, in_place_codebook_optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    z = torch.tensor([[[0.4, 0.1, -0.1, -0.3]]])
    out, indices, loss = module(z)
    assert indices.tolist() == [[2, 1, 1, 0]]
    moved = torch.tensor([-0.5 + 0.5 * 2 / 4 * 0.2, 0.0, 0.5 - 0.5 * 2 / 4 * 0.1])
    torch.testing.assert_close(module.values_per_latent[0].detach(), moved)
    torch.testing.assert_close(out[0, 0], moved[indices[0].long()])
    assert not loss.requires_grad
    with pytest.raises(ValueError, match="in_place_codebook_optimizer"):
        adapters.LatentQuantize([3], 1, optimize_values=False, in_place_codebook_optimizer=torch.optim.SGD)


def test_fixed_values_follow_the_module() -> None:
    module = adapters.LatentQuantize([3, 5], 2, optimize_values=False).double()
    assert module(torch.rand(1, 2, 4).double())[0].dtype == torch.float64
    assert module.to("meta").indices_to_codes(torch.zeros(1, 4, dtype=torch.int32, device="meta")).is_meta
    assert not list(module.parameters())
    assert not module.state_dict()


def test_laplace_has_slope_one_half_at_zero() -> None:
    module = adapters.FSP([5, 5], act_name="laplace", quantize_rate=1.0)
    z = torch.zeros(3, 2, requires_grad=True)
    module.act_func(z).sum().backward()
    assert_bitwise_equal(z.grad, torch.full((3, 2), 0.5))
    assert module.inv_act_func(torch.tensor(0.5)).item() == 0


def test_moments_of_a_constant_batch() -> None:
    """Equal vectors, or a single one: the gradient of the squared mean is all there is."""
    for rows in (3, 1):
        z = torch.ones(rows, 2, requires_grad=True)
        loss, _ = adapters.FSP([5, 5], vector_norm="kurt").vector_norm(z)
        loss.backward()
        torch.testing.assert_close(z.grad, torch.full((rows, 2), 0.1 * 2 / (2 * rows)))


def test_low_precision_perturbation_reaches_the_last_bin() -> None:
    assert adapters.FSP([256]).eval()(torch.full((2, 1), 9.0, dtype=torch.bfloat16))[1].tolist() == [255, 255]


@each("shape", [(3, 8), (3, 5, 8)])
def test_evolution_works_on_bits_behind_projections(shape: tuple[int, ...]) -> None:
    module = adapters.EvoLFQ(
        torch.nn.Linear(8, 6), torch.nn.Linear(6, 8), dim=6, codebook_size=16, num_codebooks=2, spherical=True
    )
    x = torch.randn(shape)
    bits = module.encode(x)
    assert bits.shape == (*shape[:-1], 8)
    torch.testing.assert_close(module.decode_bits(bits), module.eval()(x).reconstructed)


def test_the_best_gene_has_the_best_fitness() -> None:
    """Fitness is linear with random weights, so that hardly two genes have the same."""
    module = adapters.EvoLFQ(torch.nn.Identity(), torch.nn.Identity(), dim=12, pop_size=16, mutation_rate=0.2)
    weights = torch.randint(1, 10_000, (12,)).float()
    for result in module.evolve(lambda decoded, bits: bits @ weights, shape=(12,), generations=8):
        assert (result.best_gene @ weights).item() == result.best_fitness


def test_evolution_leaves_modes_alone() -> None:
    module = adapters.EvoLFQ(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), dim=4)
    module.encoder.eval()
    module.encode(torch.randn(2, 4))
    assert [part.training for part in (module, module.encoder, module.decoder)] == [True, False, True]


# errors


@each(
    ("build", "message"),
    [
        (lambda: adapters.FSQ([2, 5]), "levels: expected at least 3 without preserve_symmetry, got [2, 5]"),
        (lambda: adapters.FSQ([]), "levels: expected one or more numbers of at least 2, got []"),
        (
            lambda: adapters.FSQ([5], noise_dropout=0.5),
            "noise_dropout: expected 0 without preserve_symmetry, got 0.5",
        ),
        (
            lambda: adapters.FSQ([5], num_codebooks=2, keep_num_codebooks_dim=False),
            "keep_num_codebooks_dim: expected True for 2 codebooks, got False",
        ),
        (lambda: adapters.FSQ([5])(torch.zeros(1, 2, 3)), "z: expected vectors of dim=1 along dimension -1"),
        (lambda: adapters.LFQ(), "dim: expected a number where codebook_size is None, got None"),
        (lambda: adapters.LFQ(codebook_size=12), "codebook_size: expected a power of 2 of at least 2, got 12"),
        (
            lambda: adapters.LFQ(dim=4)(torch.zeros(1, 3, 4), mask=torch.ones(2, 3).bool()),
            "mask: expected one entry for each of the vectors [1, 3], or of the first, got [2, 3]",
        ),
        (lambda: adapters.FSP([5], act_name="relu"), "act_name: expected one of tanh, sigmoid, normal"),
        (lambda: adapters.FSP([5], quantize_rate=2), "quantize_rate: expected a number in [0, 1], got 2"),
        (lambda: adapters.LatentQuantize(5, 3), "codebook_dim: expected at least 1 with a single number of levels"),
        (lambda: adapters.BinaryMapper(2)(torch.zeros(3)), "logits: expected vectors of dim=2 along dimension -1"),
        (lambda: adapters.BinaryMapper(2).log_prob(torch.zeros(2)), "indices, one_hot: expected exactly one of them"),
        (lambda: adapters.Sequential(torch.nn.Identity()), "fns: expected exactly one quantizer, got 0"),
        (lambda: adapters.GroupedResidualLFQ(dim=5, groups=2), "groups: expected a divisor of dim=5, got 2"),
    ],
)
def test_errors_name_the_argument(build: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
