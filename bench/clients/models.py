"""The quantizers of published models at their sizes: the library's own, and the same with its lookups replaced."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import nn

import vqkernels
from bench.case import Call, Implementation
from bench.ours import kept, ours


class Problem(NamedTuple):
    """What the quantizer of a model is given, and its weights."""

    client: str
    num_codes: int
    latents: torch.Tensor
    names: tuple[str, ...]
    weights: tuple[torch.Tensor, ...]


class Client(NamedTuple):
    """A model: how its quantizer is made of K, what of N vectors it is given, and where its lookups are."""

    library: str
    make: Callable[[int], nn.Module]
    channels: int
    # the shape of what it is given, N for the vectors along time or both sides of a map
    shape: Callable[[int], tuple[int, ...]]
    encode: Callable[[Any, torch.Tensor], torch.Tensor]
    kind: str  # name of the class that looks up
    lookup: str = "forward"  # its method
    axis: int = 1  # of the vectors in what that is given
    normalised: bool = False
    metric: str = "l2"


def _hf(model: str, name: str, config: str, size: str, **options: Any) -> Callable[[int], nn.Module]:
    """A part of a model of transformers made of its configuration, whose defaults are the published ones."""

    def make(num_codes: int) -> nn.Module:
        configuration = import_module(f"transformers.models.{model}.configuration_{model}")
        described = getattr(configuration, config)(**{size: num_codes}, **options)
        quantizer: nn.Module = getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)(
            described
        )
        return quantizer

    return make


def _snac(num_codes: int) -> nn.Module:
    quantizer: nn.Module = import_module("snac.vq").ResidualVectorQuantize(768, num_codes, 8, [4, 2, 1])
    return quantizer


def _signal(channels: int) -> Callable[[int], tuple[int, ...]]:
    return lambda n: (1, channels, n)


def _map(channels: int, *lead: int) -> Callable[[int], tuple[int, ...]]:
    return lambda n: (1, *lead, channels, math.isqrt(n), n // math.isqrt(n))


def _codec(model: str, prefix: str, stack: str, channels: int, **more: Any) -> Client:
    return Client(
        "transformers",
        _hf(model, f"{prefix}{stack}", f"{prefix}Config", "codebook_size", **more.pop("options", {})),
        channels,
        _signal(channels),
        lambda module, x: module.encode(x),
        f"{prefix}EuclideanCodebook",
        "quantize",
        **more,
    )


def _image(model: str, prefix: str, size: str, channels: int, **more: Any) -> Client:
    return Client(
        "transformers",
        _hf(model, f"{prefix}VectorQuantizer", f"{prefix}Config", size),
        channels,
        more.pop("shape", _map(channels)),
        more.pop("encode", lambda module, z: module(z)[2]),
        f"{prefix}VectorQuantizer",
        **more,
    )


CLIENTS = {
    "encodec": _codec("encodec", "Encodec", "ResidualVectorQuantizer", 128),
    "dac": Client(
        "transformers",
        _hf("dac", "DacResidualVectorQuantizer", "DacConfig", "codebook_size"),
        1024,
        _signal(1024),
        lambda module, x: module(x)[1],
        "DacVectorQuantize",
        "decode_latents",
        normalised=True,
    ),
    "mimi": _codec("mimi", "Mimi", "SplitResidualVectorQuantizer", 512),
    "xcodec": _codec("xcodec", "Xcodec", "ResidualVectorQuantization", 1024),
    "wavtokenizer": _codec("wavtokenizer", "WavTokenizer", "VectorQuantization", 512),
    "snac": Client(
        "snac",
        _snac,
        768,
        _signal(768),
        lambda module, x: torch.cat(module(x)[1], dim=1),
        "VectorQuantize",
        "decode_latents",
        normalised=True,
    ),
    "chameleon": _image("chameleon", "ChameleonVQVAE", "num_embeddings", 256),
    "janus": _image("janus", "JanusVQVAE", "num_embeddings", 8),
    "glm-image": _image("glm_image", "GlmImageVQVAE", "num_embeddings", 2048, normalised=True),
    "emu3": _image(
        "emu3",
        "Emu3VQVAE",
        "codebook_size",
        4,
        shape=_map(4, 1),
        encode=lambda module, z: module(z),
        axis=2,
    ),
    "apertus": _image(
        "apertus1p5",
        "Apertus1p5VisionTokenizer",
        "codebook_size",
        256,
        encode=lambda module, z: module(z),
        metric="dot",
    ),
}
_CODES = ("embed", "embed_sum", "embedding", "codebook")


def table(module: Any) -> torch.Tensor:  # [K, D]
    """The parameter or buffer with the codes of a module that looks up."""
    # one that computes its codes keeps their sums
    name = next(name for name in reversed(_CODES) if name in {**module._buffers, **module._modules})
    codes: torch.Tensor = getattr(getattr(module, name), "weight", getattr(module, name))
    return codes


def lookups(client: Client, quantizer: nn.Module) -> list[nn.Module]:
    return [part for part in quantizer.modules() if type(part).__name__ == client.kind]


def problem(name: str, sizes: Mapping[str, int], seed: int) -> Problem:
    """Vectors and codes of one size, so that all codes are as likely."""
    client, k = CLIENTS[name], sizes["K"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = client.make(k).eval()
        for part in lookups(client, quantizer):
            table(part).data.normal_()
        latents = torch.randn(client.shape(sizes["N"]))
    state = quantizer.state_dict()
    return Problem(name, k, latents, tuple(state), tuple(state.values()))


def module_of(problem: Problem) -> nn.Module:
    """The library's quantizer around the weights of a problem, which are not copied."""
    with torch.device("meta"):
        quantizer = CLIENTS[problem.client].make(problem.num_codes).eval()
    quantizer.load_state_dict(dict(zip(problem.names, problem.weights, strict=True)), assign=True)
    return quantizer


def _original(problem: Problem) -> Call:
    return _call(problem, module_of(problem))


def _replaced(backend: str | None, problem: Problem) -> Call:
    quantizer = module_of(problem)
    vqkernels.replace_quantizers(quantizer)
    call = _call(problem, quantizer)
    if backend is None:
        return call

    def by_name() -> torch.Tensor:
        with vqkernels.use_backend(backend):
            return call()

    return by_name


def _call(problem: Problem, quantizer: nn.Module) -> Call:
    encode = CLIENTS[problem.client].encode

    @torch.no_grad()
    def call() -> torch.Tensor:
        return encode(quantizer, problem.latents).reshape(-1)

    return call


def _looked_up(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, str]:
    """A lookup as :func:`vqkernels.nearest_code` gets it."""
    codes = table(lookups(CLIENTS[problem.client], module_of(problem))[0])[None]
    return (
        problem.latents.new_zeros(problem.latents.numel() // CLIENTS[problem.client].channels, 1, codes.shape[2]),
        codes,
        "l2",
    )


def contestants(name: str) -> tuple[Implementation, ...]:
    library = CLIENTS[name].library
    default, *named = ours("clients", _looked_up, _replaced)
    return (
        replace(
            default,
            prepare=lambda problem: kept(_replaced(None, problem)),
            note="the codes of a model come again: what is kept of them is compared inside the clock",
        ),
        *named,
        Implementation(
            library, library, _original, devices=("cpu", "cuda"), note="what it replaces, with the same weights"
        ),
    )


class Level(NamedTuple):
    """A lookup of the float64 truth."""

    rows: torch.Tensor  # [N, D]
    codes: torch.Tensor  # [K, D]
    indices: torch.Tensor  # [N]


def truth(problem: Problem) -> list[Level]:
    """What the library's quantizer looks up in float64, one after the other, and what it finds."""
    client = CLIENTS[problem.client]
    quantizer = copy.deepcopy(module_of(problem)).double()
    levels: list[Level] = []

    def noted(part: nn.Module) -> Callable[[torch.Tensor], Any]:
        original = getattr(part, client.lookup)

        def look_up(x: torch.Tensor) -> Any:
            rows = x.movedim(client.axis, -1).reshape(-1, x.shape[client.axis])
            codes = table(part)
            if client.normalised:
                rows, codes = nn.functional.normalize(rows), nn.functional.normalize(codes)
            levels.append(Level(rows, codes, _nearest(rows, codes, client.metric)))
            return original(x)

        return look_up

    for part in lookups(client, quantizer):
        setattr(part, client.lookup, noted(part))
    with torch.no_grad():
        client.encode(quantizer, problem.latents.double())
    return levels


def _nearest(rows: torch.Tensor, codes: torch.Tensor, metric: str) -> torch.Tensor:  # [N, D], [K, D] -> [N]
    size = max(1, (1 << 22) // len(codes))
    parts = [
        -(part @ codes.t()) if metric == "dot" else codes.square().sum(1) - 2 * part @ codes.t()
        for part in rows.split(size)
    ]
    return torch.cat([part.argmin(1) for part in parts])


inputs = {name: partial(problem, name) for name in CLIENTS}
