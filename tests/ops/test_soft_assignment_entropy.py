"""Values and gradients against float64 autograd on the N x K matrix, within the budget of ``entropy_oracle``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from entropy_oracle import U32, Truth, assert_meets, float32_logit_error, materialised, truth_and_budget
from needs import needs_extension
from torch._dynamo.testing import CompileCounterWithBackend
from variants import variants

from vqkernels import SoftEntropy, soft_assignment_entropy
from vqkernels.testing import PROBLEMS, assert_bitwise_equal, lookup_problem, strided, usable_backends

OPS = ("soft_assignment_entropy",)
METRICS = ("l2", "euclidean", "cosine", "dot")
ALPHA, BETA = 1.3, 0.7
# around the blocks and tiles of all instruction sets
SHAPES = ((1, 1, 1), (5, 2, 3), (6, 64, 8), (67, 129, 5), (97, 300, 33), (3, 2000, 2), (130, 31, 64))


def run(x: torch.Tensor, codebook: torch.Tensor, temperature: float, **options: Any) -> Truth:
    x, codebook = (t.detach().clone().requires_grad_() for t in (x, codebook))
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    result = soft_assignment_entropy(x, codebook, temperature=tau, **options)
    loss = (ALPHA * result.sample - BETA * result.usage).sum()
    gradients = torch.autograd.grad(loss, (x, codebook, tau))
    return Truth(*result, *gradients)


def dtypes(backend: str) -> tuple[torch.dtype, ...]:
    """What a backend computes in: the Triton kernels leave float64 to others."""
    return (torch.float32,) if backend == "triton" else (torch.float32, torch.float64)


def promised(
    x: torch.Tensor, codebook: torch.Tensor, temperature: float, metric: str, backend: str, **rest: Any
) -> tuple[Truth, Truth]:
    """The truth, and the budget of what ``backend`` promises."""
    weight = rest.pop("weight", None)
    wide = x.dtype == torch.float64
    terms = 3 * x.shape[1] + 16 if backend == "triton" else None
    return truth_and_budget(
        x,
        codebook,
        torch.ones(len(x)) if weight is None else weight,
        temperature,
        metric,
        alpha=ALPHA,
        beta=BETA,
        logit_error=2.0**-36 if wide else float32_logit_error(x, codebook, temperature, metric, terms),
        roundoff=2.0**-53 if wide else 2.0**-24,
        **rest,
    )


def check(
    x: torch.Tensor, codebook: torch.Tensor, temperature: float, metric: str, backend: str, **rest: Any
) -> None:
    truth, budget = promised(x, codebook, temperature, metric, backend, **rest)
    assert_meets(run(x, codebook, temperature, metric=metric, backend=backend, **rest), truth, budget)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_shapes_and_temperatures(metric: str, shape: tuple[int, int, int], backend: str) -> None:
    for dtype in dtypes(backend):
        x, codebook = lookup_problem("gaussian", *shape, dtype=dtype)
        for temperature in (1e-2, 1e2) if backend == "triton" else (1e-2, 0.3, 1.0, 30.0, 1e2):
            check(x, codebook, temperature, metric, backend)


@pytest.mark.parametrize("smoothing", ["add", "clamp"])
@pytest.mark.parametrize("metric", METRICS)
def test_smoothing(metric: str, smoothing: str, backend: str) -> None:
    for dtype in dtypes(backend):
        x, codebook = lookup_problem("gaussian", 67, 129, 5, dtype=dtype)
        for temperature, eps in ((0.1, 1e-5), (1.0, 1e-3), (10.0, 1e-2)):
            check(x, codebook, temperature, metric, backend, smoothing=smoothing, eps=eps)


@pytest.mark.parametrize("metric", ["l2", "euclidean"])
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_an_offset_changes_nothing(offset: float, metric: str, backend: str) -> None:
    """Multiples of 1/4 and the offset are exact in float32, and so are all differences: one truth, one budget."""
    x, codebook = (t / 4 for t in lookup_problem("exact-integers", 70, 150, 6))
    for temperature in (1e-2, 1e2) if backend == "triton" else (1e-2, 1.0, 1e2):
        near = promised(x, codebook, temperature, metric, backend)
        assert_meets(run(x + offset, codebook + offset, temperature, metric=metric, backend=backend), *near)


@pytest.mark.parametrize("metric", METRICS)
def test_duplicate_codes_share(metric: str, backend: str) -> None:
    """A code in m copies has 1/m of the probability in each."""
    x, codebook = lookup_problem("gaussian", 60, 40, 4)
    one, allowed = promised(x, codebook, 1.0, metric, backend)
    four = soft_assignment_entropy(x, codebook.repeat(4, 1), metric=metric, backend=backend)
    for got, want, budget in (
        (four.mean_assignment, one.mean_assignment.repeat(4) / 4, allowed.mean_assignment.repeat(4) / 4),
        (four.sample, one.sample + math.log(4), allowed.sample),
        (four.usage, one.usage + math.log(4), allowed.usage),
    ):
        assert bool(((got - want).abs() <= budget + 8 * U32 * want).all())


@pytest.mark.parametrize("metric", METRICS)
def test_vectors_of_weight_zero_do_not_exist(metric: str, backend: str) -> None:
    """Not even if they are not finite; and weights are relative."""
    x, codebook = lookup_problem("gaussian", 70, 50, 7)
    weight = torch.rand(70)
    weight[::3] = 0
    kept = weight > 0
    filled = x.clone()
    filled[::6], filled[3::6] = torch.nan, 1e30
    few = run(x[kept], codebook, 0.5, metric=metric, backend=backend, weight=weight[kept])
    all_ = run(filled, codebook, 0.5, metric=metric, backend=backend, weight=64 * weight)
    assert_bitwise_equal(all_.dx[~kept], torch.zeros_like(all_.dx[~kept]))
    truth, budget = promised(x[kept], codebook, 0.5, metric, backend, weight=weight[kept])
    for result in (few, all_._replace(dx=all_.dx[kept])):
        assert_meets(result, truth, budget)
    check(x, codebook, 0.5, metric, backend, weight=weight)
    mask = run(x, codebook, 0.5, metric=metric, backend=backend, weight=kept)
    for a, b in zip(mask, run(x, codebook, 0.5, metric=metric, backend=backend, weight=kept.double()), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
def test_nonfinite_vectors_and_codes_are_left_out(metric: str, backend: str) -> None:
    x, codebook = lookup_problem("nonfinite", 40, 60, 5)
    good_x, good_c = (t.isfinite().all(1) for t in (x, codebook))
    result = run(x, codebook, 0.7, metric=metric, backend=backend)
    for a, good in ((result.dx, good_x), (result.dcodebook, good_c), (result.mean_assignment, good_c)):
        assert_bitwise_equal(a[~good], torch.zeros_like(a[~good]))
    finite = result._replace(
        dx=result.dx[good_x], dcodebook=result.dcodebook[good_c], mean_assignment=result.mean_assignment[good_c]
    )
    assert_meets(finite, *promised(x[good_x], codebook[good_c], 0.7, metric, backend))


@pytest.mark.parametrize("size", [1e78, 1e150, 1e300])
@pytest.mark.parametrize("metric", METRICS)
def test_float64_beyond_2_to_the_256_counts_as_not_finite(metric: str, size: float, backend: str) -> None:
    """Vectors, codes and weights; at 1e76 they take part."""
    x, codebook = lookup_problem("gaussian", 12, 9, 5, dtype=torch.float64)
    if torch.float64 not in dtypes(backend):
        with pytest.raises(NotImplementedError, match="float64"):
            soft_assignment_entropy(x, codebook, metric=metric, backend=backend)
        return
    weight = torch.rand(12, dtype=torch.float64)
    far_x, far_c, far_w = x.clone(), codebook.clone(), weight.clone()
    far_x[3], far_c[2], far_w[7] = size, -size, size
    kept, codes = (torch.arange(12) != 3) & (torch.arange(12) != 7), torch.arange(9) != 2
    result = run(far_x, far_c, 0.7, metric=metric, backend=backend, weight=far_w)
    for a, good in ((result.dx, kept), (result.dcodebook, codes), (result.mean_assignment, codes)):
        assert_bitwise_equal(a[~good], torch.zeros_like(a[~good]))
    rest = result._replace(
        dx=result.dx[kept], dcodebook=result.dcodebook[codes], mean_assignment=result.mean_assignment[codes]
    )
    assert_meets(rest, *promised(x[kept], codebook[codes], 0.7, metric, backend, weight=weight[kept]))
    far_x[3] = far_c[2] = 1e76
    far_w[7] = 1e76
    assert all(bool(t.isfinite().all()) for t in run(far_x, far_c, 0.7, metric=metric, backend=backend, weight=far_w))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_adversarial_inputs_give_finite_results(problem: str, metric: str, backend: str) -> None:
    cases = ((torch.float32, (30, 70, 3)), (torch.bfloat16, (30, 7, 20)), (torch.float16, (0, 5, 2)))
    for dtype, (n, k, d) in cases[:1] if backend == "triton" else cases:
        x, codebook = lookup_problem(problem, n, k, d, dtype=dtype, groups=2)
        for temperature in (1e-2,) if backend == "triton" else (1e-2, 1e2):
            result = run(x, codebook, temperature, metric=metric, backend=backend)
            assert all(bool(t.isfinite().all()) for t in result)
            assert bool((result.mean_assignment >= 0).all())
            occupied = result.mean_assignment.sum(1) > 0
            ones = torch.ones(int(occupied.sum()), dtype=result.sample.dtype)
            torch.testing.assert_close(result.mean_assignment.sum(1)[occupied], ones, rtol=1e-5, atol=0)
            for entropy in (result.sample, result.usage):
                assert bool((entropy >= -1e-5).all())
                assert bool((entropy <= math.log(k) + 1e-5).all())


def test_coincident_points_have_no_gradient(backend: str) -> None:
    """The euclidean distance has none at 0; the convention is that of ``torch.cdist``."""
    x = torch.randn(6, 4)
    check(x, x.clone(), 1.0, "euclidean", backend)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_vectors_of_a_cosine(metric: str, backend: str) -> None:
    x, codebook = lookup_problem("zero-vectors", 9, 12, 4)
    result = run(x, codebook, 0.1, metric=metric, backend=backend)
    if metric == "cosine":
        assert not result.dx[::3].any()
        assert not result.dcodebook[1::3].any()
    assert all(bool(t.isfinite().all()) for t in result)


def test_groups_are_independent(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 50, 33, 6, groups=3)
    weight = torch.rand(5, 10, 3)
    result = run(x.reshape(5, 10, 3, 6), codebook, 0.5, backend=backend, weight=weight)
    for g in range(3):
        alone = run(x[:, g], codebook[g], 0.5, backend=backend, weight=weight.reshape(50, 3)[:, g])
        for name in ("sample", "usage", "mean_assignment", "dcodebook"):
            assert_bitwise_equal(getattr(result, name)[g], getattr(alone, name))
        assert_bitwise_equal(result.dx.reshape(50, 3, 6)[:, g], alone.dx)


@pytest.fixture(params=[isa for kernel, isa in variants(*OPS) if kernel == "cpu"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VQKERNELS_ISA", request.param)
    return str(request.param)


def among_absent_codes(codebook: torch.Tensor, every: int) -> torch.Tensor:  # [..., K, D] -> [..., K * every, D]
    """So many codes that a batch of vectors cannot keep its pairs with all of them: passes compute them again."""
    shape = (*codebook.shape[:-2], codebook.shape[-2] * every, codebook.shape[-1])
    spread = codebook.new_full(shape, torch.nan)
    spread[..., ::every, :] = codebook
    return spread


@needs_extension
@pytest.mark.covering
@pytest.mark.parametrize(("n", "d", "every"), [(1100, 9, 1), (60, 2, 200)], ids=["kept", "computed again"])
@pytest.mark.parametrize("metric", METRICS)
def test_bits_do_not_depend_on_threads(metric: str, n: int, d: int, every: int) -> None:
    # enough pairs for the kernels to want several threads, and several batches for each
    x, codebook = lookup_problem("gaussian", n, 700, d, groups=2)
    codebook = among_absent_codes(codebook, every)
    weight = torch.rand(n, 2)
    for smoothing in ("none", "clamp"):
        options: Any = {"metric": metric, "backend": "cpu", "weight": weight, "smoothing": smoothing}
        torch.set_num_threads(1)
        expected = run(x, codebook, 0.3, **options)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for a, b in zip(run(x, codebook, 0.3, **options), expected, strict=True):
                assert_bitwise_equal(a, b)


@needs_extension
@pytest.mark.parametrize("n", [5, 6, 7, 125, 126, 127, 1007, 1008, 1009])
def test_borders_of_batches(n: int) -> None:
    """Against the oracle, with codes around the ends of blocks and of what a batch adds up at a time."""
    for k in (1, 63, 64, 65, 255, 256, 257):
        x, codebook = lookup_problem("gaussian", n, k, 3)
        check(x, codebook, 0.5, "l2", "cpu", weight=torch.arange(n) % 7 != 3)


def test_borders_of_slices_of_dimensions(isa: str) -> None:
    """Against the oracle. A block of codes that is larger than the first level cache is met slice by slice."""
    slices = {"portable": 1024, "avx2": 512, "neon": 512}.get(isa, 128)
    dims = (slices - 1, slices, slices + 1, 2 * slices + 3)
    for dim, dtype in itertools.product(dims, (torch.float32, torch.float64)):
        x, codebook = lookup_problem("gaussian", 9, 70, dim, dtype=dtype)
        for metric in ("l2", "euclidean"):
            check(x, codebook, 2.0 * dim if metric == "l2" else 1.0, metric, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_computed_again_are_those_kept(dtype: torch.dtype, isa: str) -> None:
    """Codes that are not there change the division of the work and nothing else: sums in another order.

    What is kept meets the oracle in all other tests.
    """
    x, codebook = lookup_problem("gaussian", 100, 300, 2, dtype=dtype)
    more = among_absent_codes(codebook, every := 500)
    tolerance = 2.0**-18 if dtype == torch.float32 else 2.0**-44
    for metric, smoothing in (("l2", "none"), ("euclidean", "clamp")):
        options: Any = {"metric": metric, "smoothing": smoothing, "backend": "cpu"}
        kept, again = (run(x, c, 0.3, **options) for c in (codebook, more))
        for name, a, b in zip(Truth._fields, again, kept, strict=True):
            if name in ("mean_assignment", "dcodebook"):
                assert a.count_nonzero() == a[::every].count_nonzero()
                a = a[::every]
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item(), msg=name)


def test_every_instruction_set_is_within_the_budget(isa: str) -> None:
    for (n, k, d), metric, dtype in itertools.product(
        ((67, 129, 5), (13, 1100, 33)), METRICS, (torch.float32, torch.float64)
    ):
        x, codebook = lookup_problem("gaussian", n, k, d, dtype=dtype)
        for temperature, smoothing in ((1e-2, "none"), (1.0, "none"), (10.0, "clamp"), (1e2, "add")):
            check(x, codebook, temperature, metric, "cpu", smoothing=smoothing)


def test_layouts_and_dtypes(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 21, 37, 5, dtype=torch.float16)
    weight = torch.rand(21)
    expected = run(x.float(), codebook.float(), 0.4, backend=backend, weight=weight)
    result = run(strided(x), strided(codebook), 0.4, backend=backend, weight=strided(weight))
    for name, a, b in zip(Truth._fields, result, expected, strict=True):
        assert_bitwise_equal(a, b.half() if name in ("dx", "dcodebook") else b)


def test_only_what_is_asked_for(backend: str) -> None:
    """Each gradient alone is the one that comes with the others; in C++, of more codes than are taken at a time."""
    x, codebook = lookup_problem("gaussian", 20, 300 if backend == "cpu" else 30, 4)
    everything = run(x, codebook, 0.5, backend=backend)
    for name in ("dx", "dcodebook", "dtemperature"):
        tau = torch.tensor(0.5, dtype=torch.float64)
        leaf = {"dx": x, "dcodebook": codebook, "dtemperature": tau}[name]
        leaf = leaf.detach().requires_grad_()
        args = [leaf if t is leaf or t.data_ptr() == leaf.data_ptr() else t.detach() for t in (x, codebook, tau)]
        result = soft_assignment_entropy(args[0], args[1], temperature=args[2], backend=backend)
        (gradient,) = torch.autograd.grad(ALPHA * result.sample - BETA * result.usage, leaf)
        assert_bitwise_equal(gradient, getattr(everything, name))
        leaf.requires_grad_(False)


def test_triton_refuses_float64() -> None:
    with pytest.raises(NotImplementedError, match="float64"):
        soft_assignment_entropy(torch.ones(2, 1).double(), torch.ones(2, 1).double(), backend="triton")


def test_a_second_derivative_is_refused(backend: str) -> None:
    x, codebook = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    result = soft_assignment_entropy(x, codebook, backend=backend)
    (gradient,) = torch.autograd.grad(result.sample + result.usage, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        gradient.sum().backward()


def test_compiled_in_one_graph_for_every_n(backend: str) -> None:
    def loss(x: torch.Tensor, codebook: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        sample, usage, _ = soft_assignment_entropy(x, codebook, temperature=tau, backend=backend)
        return sample - usage

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for n in (24, 57):
        x, codebook = (t.requires_grad_() for t in lookup_problem("gaussian", n, 9, 4))
        tau = torch.tensor(0.5, requires_grad=True)
        gradients = [torch.autograd.grad(f(x, codebook, tau), (x, codebook, tau)) for f in (compiled, loss)]
        for actual, expected in zip(*gradients, strict=True):
            assert_bitwise_equal(actual, expected)
        frames.append(counter.frame_count)
    assert frames[0] == frames[1]


def test_no_vector_and_no_finite_code(backend: str) -> None:
    for x, codebook in ((torch.randn(0, 3), torch.randn(4, 3)), (torch.randn(2, 3), torch.full((4, 3), torch.nan))):
        for value in run(x, codebook, 1.0, backend=backend):
            assert torch.equal(value, torch.zeros_like(value))


def test_float_and_tensor_temperature_agree(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 12, 9, 4)
    for temperature in (torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)):
        for a, b in zip(
            soft_assignment_entropy(x, codebook, temperature=temperature, backend=backend),
            soft_assignment_entropy(x, codebook, temperature=0.25, backend=backend),
            strict=True,
        ):
            assert_bitwise_equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "k", "d"), [(24, 1, 8), (24, 2, 8), (7, 16384, 33), (7, 65536, 8), (13, 65536, 2)])
def test_codebook_sizes(n: int, k: int, d: int, metric: str) -> None:
    """The longest sums, some vectors masked; float64 inputs of the reference are held to the same oracle above."""
    backend = "cpu" if "cpu" in usable_backends(*OPS) else "reference"
    x, codebook = lookup_problem("gaussian", n, k, d)
    for temperature in (1e-2, 2.0, 1e2) if metric == "l2" else (0.05,):
        check(x, codebook, temperature, metric, backend, weight=torch.arange(n) % 5 != 3)


@pytest.mark.slow
def test_a_long_codebook_interpreted() -> None:
    x, codebook = lookup_problem("gaussian", 5, 8192, 4)
    for temperature in (1e-2, 2.0):
        check(x, codebook, temperature, "l2", "triton")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("smoothing", ["none", "add", "clamp"])
def test_codes_of_probability_zero(metric: str, smoothing: str, backend: str) -> None:
    """Codes opposite to all vectors: log 0 in the usage, and neither a gradient of theirs nor a NaN anywhere."""
    x, codebook = (t.abs() + 1 for t in lookup_problem("gaussian", 40, 50, 6))
    far = torch.cat([codebook, -1e3 * codebook])
    result = run(x, far, 1e-2, metric=metric, backend=backend, smoothing=smoothing)
    assert all(bool(t.isfinite().all()) for t in result)
    assert_bitwise_equal(result.mean_assignment[50:], torch.zeros(50))
    assert not result.dcodebook[50:].any()
    check(x, far, 1e-2, metric, backend, smoothing=smoothing)


def test_exponential_over_its_whole_range(backend: str) -> None:
    """Two codes per group, a vector on the first: the second has odds e^(-d/temperature)."""
    exponent = torch.linspace(0, 63.9, {"triton": 41, "reference": 401}.get(backend, 4001), dtype=torch.float64)
    codebook = torch.stack([torch.zeros_like(exponent), exponent.sqrt()], dim=1)[..., None].float()
    exact = codebook[:, 1, 0].double().square()
    result = soft_assignment_entropy(torch.zeros(1, len(exponent), 1), codebook, backend=backend)
    share = torch.sigmoid(-exact)
    # a float32 product, its rounding times the exponent, and 2^-22 of the exponential
    allowed = share * (2.0**-22 + (8 * exact + 8) * 2.0**-24)
    assert bool(((result.mean_assignment[:, 1].double() - share).abs() <= allowed).all())


@pytest.mark.parametrize("temperature", [2.0**-256, 2.0**256])
@pytest.mark.parametrize("metric", METRICS)
def test_temperatures_at_their_limits(metric: str, temperature: float, backend: str) -> None:
    x, codebook = (torch.eye(4)[:size] + 1 for size in (2, 3))
    sample, usage, _ = soft_assignment_entropy(x, codebook, metric=metric, temperature=temperature, backend=backend)
    expected = (0.0, math.log(2)) if temperature < 1 else (math.log(3), math.log(3))
    assert (sample.item(), usage.item()) == pytest.approx(expected, rel=2.0**-20, abs=2.0**-20)


def test_a_large_integer_is_a_number() -> None:
    x, codebook = torch.randn(4, 3), torch.randn(6, 3)
    results = [soft_assignment_entropy(x, codebook, temperature=value) for value in (2**70, 2.0**70)]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "l1"}, ValueError, "metric: expected one of"),
        ({"smoothing": "floor"}, ValueError, "smoothing: expected one of"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0"),
        ({"temperature": math.nan}, ValueError, "temperature: expected a finite number > 0"),
        ({"temperature": 1e-320}, ValueError, r"temperature: expected a number in \[2\^-256, 2\^256\], got 1e-320"),
        ({"temperature": 1e200}, ValueError, r"temperature: expected a number in \[2\^-256, 2\^256\], got 1e\+200"),
        ({"temperature": torch.ones(2)}, ValueError, "temperature: expected shape"),
        ({"temperature": torch.tensor(1)}, TypeError, "temperature: expected a floating point tensor"),
        ({"temperature": torch.ones((), device="meta")}, ValueError, "temperature: expected a tensor with data"),
        ({"eps": 0.0}, ValueError, r"eps: expected a number in \(0, 1\)"),
        ({"weight": torch.ones(5)}, ValueError, "weight: expected shape"),
        ({"x": torch.ones(4, 2)}, ValueError, "x: expected"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "x: expected a floating point tensor"),
        ({"codebook": torch.ones(0, 3)}, ValueError, "codebook: expected at least one"),
        ({"backend": "gpu"}, ValueError, "backend: expected"),
        ({"reduce": lambda sums: None}, TypeError, "^reduce: expected a torch.Tensor, got NoneType"),
        ({"reduce": lambda sums: sums[0]}, ValueError, r"^reduce: expected shape .* = \[1, 8\], got \[8\]"),
        ({"reduce": lambda sums: sums.to("meta")}, ValueError, "^reduce: expected a tensor on cpu, got one on meta"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(4, 3), "codebook": torch.ones(6, 3), **change}
    with pytest.raises(error, match=message):
        soft_assignment_entropy(arguments.pop("x"), arguments.pop("codebook"), **arguments)


def test_the_oracle_sees_a_wrong_gradient() -> None:
    x, codebook = lookup_problem("gaussian", 40, 30, 4)
    options: Any = {"alpha": ALPHA, "beta": BETA, "logit_error": float32_logit_error(x, codebook, 1.0, "l2")}
    truth, budget = truth_and_budget(x, codebook, torch.ones(40), 1.0, "l2", **options)
    assert_meets(truth, truth, budget)
    for name in Truth._fields:
        with pytest.raises(AssertionError, match=name):
            assert_meets(truth._replace(**{name: getattr(truth, name) * 1.01}), truth, budget)


def test_the_result_is_a_named_tuple() -> None:
    result = soft_assignment_entropy(torch.randn(3, 2), torch.randn(4, 2))
    assert isinstance(result, SoftEntropy)
    assert [list(t.shape) for t in result] == [[], [], [4]]
    assert not result.mean_assignment.requires_grad
    sample, *_ = materialised(torch.ones(1, 1), torch.ones(2, 1), torch.ones(1), torch.tensor(1.0), "l2")
    assert sample.item() == pytest.approx(math.log(2))
