"""The problems: lookups that published tokenizers do in every training step.

N is scaled down to what two cores do in a moment, and true on a GPU; K, D and G are never touched, because they
decide which implementation wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from bench.case import Implementation, OpCase, Verdict, Work
from bench.gate import Cosine, SquaredL2, judge
from bench.nearest_code.cosine import COSINE_LOOKUPS, FIXED_COSINE_LOOKUPS, CosineProblem
from bench.nearest_code.leech import leech_codebook
from bench.nearest_code.lookups import INFERENCE_LOOKUPS, LOOKUPS
from vqkernels.testing import LookupProblem, lookup_problem


def _inputs(data: str, sizes: Mapping[str, int], seed: int) -> LookupProblem:
    n, k, d = (sizes[letter] for letter in "NKD")
    groups = sizes["G"] if sizes["G"] > 1 else None
    if data != "uniform-init":
        return lookup_problem(data, n, k, d, groups=groups, seed=seed)
    # as most VQ code initialises a codebook: uniform in [-1/K, 1/K], all codes nearly the same
    problem = lookup_problem("gaussian", n, k, d, groups=groups, seed=seed)
    uniform = torch.rand(problem.codebook.shape, generator=torch.Generator().manual_seed(seed))
    return problem._replace(codebook=(2 * uniform - 1) / k)


_gaussian = partial(_inputs, "gaussian")


def _cosine(sizes: Mapping[str, int], seed: int) -> CosineProblem:
    return CosineProblem(*_gaussian(sizes, seed))


def _leech(sizes: Mapping[str, int], seed: int) -> CosineProblem:
    """The lattice's codes, or so many of all kinds among them as are asked for."""
    x, codebook = _gaussian(sizes, seed).x, leech_codebook()
    return CosineProblem(x, codebook[:: len(codebook) // sizes["K"]][: sizes["K"]].contiguous())


def verify(
    problem: LookupProblem | CosineProblem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]
) -> dict[str, Verdict]:
    """Hold the indices of every implementation against the truth."""
    geometry = Cosine if isinstance(problem, CosineProblem) else SquaredL2
    return judge(geometry(*problem), answers, ours)


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d, g = (sizes[letter] for letter in "NKDG")
    # x and codebook are read, an int64 index and a float32 distance written
    return Work(pairs=n * k * g, flops=2 * n * k * d * g, bytes=4 * (n + k) * d * g + 12 * n * g)


def lookup_case(
    name: str,
    n: int,
    k: int,
    d: int,
    g: int = 1,
    *,
    true_n: int | None = None,
    cuda_n: int | None = None,
    inputs: Callable[[Mapping[str, int], int], LookupProblem | CosineProblem] = _gaussian,
    implementations: tuple[Implementation, ...] = LOOKUPS,
    note: str,
    adverse: bool = False,
) -> OpCase:
    """A lookup; ``true_n`` where ``n`` was scaled down, ``cuda_n`` where a GPU gets yet another."""
    return OpCase(
        op="nearest_code",
        name=name,
        sizes={"N": n, "K": k, "D": d, "G": g},
        inputs=inputs,
        implementations=implementations,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 50, "K": 301},
        true_sizes={} if true_n is None else {"N": true_n},
        cuda_sizes={} if cuda_n is None else {"N": cuda_n},
        note=note,
        adverse=adverse,
    )


CASES = (
    lookup_case("k8192-d8", 16384, 8192, 8, note="a middling codebook of short codes"),
    lookup_case("k16384-d32", 16384, 16384, 32, note="a middling codebook of longer codes"),
    lookup_case("vqgan-f8", 4096, 16384, 256, true_n=10240, note="VQGAN and CVQ, one step"),
    lookup_case("vqgan-lc-f16", 4096, 100_000, 8, true_n=65536, note="VQGAN-LC, one step"),
    lookup_case("vqgan-lc-f8", 4096, 100_000, 4, true_n=262_144, note="VQGAN-LC at f8, one step"),
    lookup_case(
        "vqgan-lc-image",
        256,
        100_000,
        8,
        implementations=INFERENCE_LOOKUPS,
        note="VQGAN-LC, the tokens of one image",
    ),
    lookup_case("fc-ema-f16", 16384, 16384, 8, true_n=65536, note="factorized-code and EMA baselines, one step"),
    lookup_case("seqgan", 16384, 1024, 256, true_n=65536, note="SeQ-GAN, one step"),
    lookup_case("sgc", 5760, 8192, 32, note="SGC-VQGAN with its two levels concatenated, one step per device"),
    lookup_case("mgvq-g4", 8192, 8192, 8, 4, true_n=32768, note="MGVQ f16, 4 groups, one step"),
    lookup_case("mgvq-g8", 32768, 2048, 4, 8, note="MGVQ f16, 8 groups, one step"),
    lookup_case("concept-tokens", 16384, 8192, 16, true_n=524_288, note="discrete concept tokens, one step"),
    lookup_case("ibq", 2048, 262_144, 32, true_n=65536, note="IBQ-sized codebook"),
    lookup_case(
        "kmeans-768",
        512,
        100_000,
        768,
        true_n=20_500_000,
        cuda_n=262_144,
        note="one E-step of a codebook of CLIP features",
    ),
    lookup_case(
        "emu",
        1024,
        131_072,
        256,
        true_n=4096,
        note="as many codes as Emu3.5 has, 256 dimensions assumed, the tokens of one image",
    ),
    lookup_case(
        "unitok",
        8192,
        4096,
        8,
        8,
        inputs=_cosine,
        implementations=COSINE_LOOKUPS,
        note="UniTok, 8 groups, 32 images; by cosine",
    ),
    lookup_case(
        "leech",
        1024,
        196_560,
        24,
        inputs=_leech,
        implementations=FIXED_COSINE_LOOKUPS,
        note="spherical Leech quantization, whose codes are those of the lattice; by cosine",
    ),
    lookup_case(
        "uniform-init",
        4096,
        16384,
        256,
        inputs=partial(_inputs, "uniform-init"),
        note="VQGAN before its first step: near-ties",
        adverse=True,
    ),
    lookup_case(
        "offset-100-sigma",
        4096,
        8192,
        8,
        inputs=partial(_inputs, "offset-100-sigma"),
        note="data far from the origin, where |x|^2 - 2xc + |c|^2 cancels",
        adverse=True,
    ),
)
