"""Small models of transformers with quantizers, and what is asked of them.

Codes and vectors are drawn so that no lookup is a near tie in float64; then indices are to be equal, not nearly so.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from needs import higgs_audio, import_library
from torch.nn import functional as F

from vqkernels import replace_quantizers
from vqkernels.compat.transformers import CLASSES

import_library("transformers")

Outputs = dict[str, torch.Tensor]
IMAGE: dict[str, Any] = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
AUDIO: dict[str, Any] = {"num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 32, "num_lstm_layers": 1}
# what X-Codec and Higgs Audio are made of
PARTS: dict[str, Any] = {
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 8,
        "downsampling_ratios": [4, 2],
        "upsampling_ratios": [4, 2],
        "hidden_size": 8,
    },
    "semantic_model_config": {
        "model_type": "hubert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "conv_dim": [8, 8],
        "conv_kernel": [4, 2],
        "conv_stride": [4, 2],
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    },
    "sample_rate": 16000,
    "codebook_size": 32,
    "target_bandwidths": [20, 30],
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _codec(model: Any) -> Outputs:
    audio = drawn(2, 1, 320)
    codes = model.encode(audio).audio_codes
    return {"codes": codes, "audio": model.decode(codes, *([None] if "Encodec" in type(model).__name__ else []))[0]}


def _encodec(model: Any) -> Outputs:
    encoded = model.encode(drawn(2, 1, 320), bandwidth=15.0)
    return {"codes": encoded.audio_codes, "audio": model.decode(*encoded[:2])[0]}


def _stack(model: Any) -> Outputs:
    codes = model.encode(drawn(2, 16, 40))
    return {"codes": codes, "vectors": model.decode(codes)}


def _dac(model: Any) -> Outputs:
    out = model(drawn(2, 1, 320))
    return {"codes": out.audio_codes, "audio": out.audio_values, "latents": out.projected_latents, "loss": out.loss}


def _tokens(model: Any) -> Outputs:
    out = model.encode(drawn(2, 3, 16, 16))
    found = {
        "codes": out.image_tokens,
        "loss": out.get("embedding_loss"),
        "value": out.get("quantized_last_hidden_state"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _janus(model: Any) -> Outputs:
    return _tokens(model) | {"image": model(drawn(2, 3, 16, 16)).decoded_pixel_values}


def _glm_image(model: Any) -> Outputs:
    out = model.encode(drawn(2, 8, 6, 6))
    return {"codes": out.image_tokens, "loss": out.embedding_loss, "value": out.quantized_last_hidden_state}


def _emu3(model: Any) -> Outputs:
    film = drawn(1, 4, 3, 16, 16)
    codes = model.encode(film, image_sizes=torch.tensor([[16, 16]])).image_tokens[0]
    return {"codes": codes, "film": model.decode(codes[None])}


class Case(NamedTuple):
    """A small model of random weights, and what is asked of it."""

    model: str
    options: dict[str, Any]
    run: Callable[[Any], Outputs]
    replaced: tuple[str, ...] = ("quantize",)


def _levels(path: str, *numbers: int) -> tuple[str, ...]:
    return tuple(path.format(number) for number in numbers)


CASES = {
    "EncodecEuclideanCodebook": Case(
        "EncodecModel",
        {**AUDIO, "hidden_size": 8, "sampling_rate": 8000, "target_bandwidths": [10.0, 15.0]},
        _encodec,
        _levels("quantizer.layers.{}.codebook", 0, 1, 2),
    ),
    "DacVectorQuantize": Case(
        "DacModel",
        {
            "encoder_hidden_size": 4,
            "downsampling_ratios": [2, 4],
            "decoder_hidden_size": 8,
            "n_codebooks": 3,
            "codebook_size": 32,
            "codebook_dim": 4,
        },
        _dac,
        _levels("quantizer.quantizers.{}", 0, 1, 2),
    ),
    "MimiEuclideanCodebook": Case(
        "MimiModel",
        {
            **{name: value for name, value in AUDIO.items() if name != "num_lstm_layers"},
            "hidden_size": 8,
            "codebook_dim": 4,
            "vector_quantization_hidden_dimension": 4,
            "num_quantizers": 3,
            "upsample_groups": 8,
            "num_hidden_layers": 1,
            "intermediate_size": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "sampling_rate": 200,
        },
        _codec,
        (
            "quantizer.semantic_residual_vector_quantizer.layers.0.codebook",
            *_levels("quantizer.acoustic_residual_vector_quantizer.layers.{}.codebook", 0, 1),
        ),
    ),
    "XcodecEuclideanCodebook": Case(
        "XcodecModel", PARTS, _codec, _levels("quantizer.quantizers.{}.codebook", 0, 1, 2)
    ),
    # the model itself wants torchaudio
    "HiggsAudioV2TokenizerEuclideanCodebook": Case(
        "HiggsAudioV2TokenizerResidualVectorQuantization",
        {**PARTS, "codebook_dim": 4},
        _stack,
        _levels("quantizers.{}.codebook", 0, 1, 2),
    ),
    "WavTokenizerEuclideanCodebook": Case(
        "WavTokenizerModel",
        {
            **AUDIO,
            "hidden_size": 8,
            "codebook_dim": 8,
            "decoder_hidden_size": 8,
            "decoder_intermediate_size": 8,
            "decoder_num_layers": 1,
            "decoder_attention_num_groups": 2,
        },
        _codec,
        ("encoder_model.quantizer.codebook",),
    ),
    "ChameleonVQVAEVectorQuantizer": Case(
        "ChameleonVQVAE",
        {**IMAGE, "num_embeddings": 32, "embed_dim": 8, "latent_channels": 8, "resolution": 16},
        _tokens,
    ),
    "JanusVQVAEVectorQuantizer": Case(
        "JanusVQVAE", {**IMAGE, "num_embeddings": 32, "embed_dim": 4, "latent_channels": 8, "num_patches": 8}, _janus
    ),
    "GlmImageVQVAEVectorQuantizer": Case(
        "GlmImageVQVAE", {"num_embeddings": 32, "embed_dim": 4, "latent_channels": 8}, _glm_image
    ),
    "Emu3VQVAEVectorQuantizer": Case(
        "Emu3VQVAE",
        {**IMAGE, "codebook_size": 32, "hidden_size": 32, "temporal_downsample_factor": 2, "attn_resolutions": []},
        _emu3,
    ),
    "Apertus1p5VisionTokenizerVectorQuantizer": Case(
        "Apertus1p5VisionTokenizerModel",
        {**IMAGE, "codebook_size": 32, "embed_dim": 4, "latent_channels": 8, "resolution": 16},
        _tokens,
    ),
}


def model_file(name: str) -> Any:
    """The file of transformers with a quantizer of this name."""
    return higgs_audio() if "HiggsAudio" in name else importlib.import_module(CLASSES[name].module)


def original_class(name: str) -> Any:
    return getattr(model_file(name), name)


def kind_and_config(name: str) -> tuple[Any, Any]:
    kind = getattr(model_file(name), CASES[name].model)
    config = getattr(kind, "config_class", None) or model_file(name).HiggsAudioV2TokenizerConfig
    return kind, config(**CASES[name].options)


# the method that looks up, the place of the channels in its argument
LOOKUPS = {"Dac": ("decode_latents", 1), "Emu3": ("forward", 2), "Euclidean": ("quantize", 1), "": ("forward", 1)}


def lookup(name: str) -> tuple[str, int]:
    return next(value for part, value in LOOKUPS.items() if part in name)


def table(module: Any) -> torch.Tensor:
    """The parameter or buffer with the codes ``[K, D]``."""
    names = ("embed_sum", "embed", "embedding", "codebook")
    table = next(getattr(module, kind) for kind in names if hasattr(module, kind))
    codes: torch.Tensor = getattr(table, "weight", table)
    return codes


@torch.no_grad()
def set_codes(module: Any, codes: torch.Tensor) -> None:
    table(module).copy_(codes)
    # Mimi keeps what it made of them
    module._embed = None


def compared(name: str, module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors ``[N, D]`` and codes ``[K, D]`` behind a lookup, in float64."""
    rows = x.movedim(lookup(name)[1], -1).flatten(0, -2).double()
    codes = table(module).double()
    if name.startswith(("Dac", "Glm")):
        rows, codes = F.normalize(rows, dim=1), F.normalize(codes, dim=1)
    return rows, codes


@contextmanager
def seen(name: str) -> Iterator[list[tuple[Any, torch.Tensor]]]:
    """Modules of the original's class and what they are asked to look up."""
    kind, (method, _) = original_class(name), lookup(name)
    theirs = getattr(kind, method)
    calls = []

    @functools.wraps(theirs)
    def noted(module: Any, x: torch.Tensor) -> Any:
        calls.append((module, x.detach()))
        return theirs(module, x)

    setattr(kind, method, noted)
    try:
        yield calls
    finally:
        setattr(kind, method, theirs)


@torch.no_grad()
def _build(name: str) -> Any:
    """The model, with codes of the size of the vectors they are compared with."""
    torch.manual_seed(1)
    kind, config = kind_and_config(name)
    model = kind(config).eval()
    with seen(name) as calls:
        CASES[name].run(model)
    for quantizer, x in calls:
        rows, codes = compared(name, quantizer, x)
        set_codes(quantizer, rows.mean(0) + rows.std(0) * torch.randn(codes.shape))
    return model


class Ran(NamedTuple):
    """A model, what came out of it, and what it looked up."""

    model: Any
    outputs: Outputs
    calls: list[tuple[Any, torch.Tensor]]


@functools.cache
def ran(name: str) -> Ran:
    model = _build(name)
    with torch.no_grad(), seen(name) as calls:
        outputs = CASES[name].run(model)
    return Ran(model, outputs, calls)


# the shape of one argument with N vectors, and where the indices are in the result
ASKED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], torch.Tensor]]] = {
    "Euclidean": (lambda rows: rows, lambda out: out),
    "Dac": (lambda rows: rows.T[None], lambda out: out[1]),
    "Emu3": (lambda rows: rows.T[None, None, :, :, None], lambda out: out),
    "Apertus": (lambda rows: rows.T[None, :, :, None], lambda out: out),
    "": (lambda rows: rows.T[None, :, :, None], lambda out: out[2]),
}


def replaced_quantizer(name: str) -> Any:
    """One quantizer by itself, replaced."""
    module = copy.deepcopy(ran(name).model.get_submodule(CASES[name].replaced[0]))
    replace_quantizers(module)
    return module


def ask(name: str, module: Any, rows: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N]
    argument, indices = next(value for part, value in ASKED.items() if part in name)
    return indices(getattr(module, lookup(name)[0])(argument(rows))).flatten()
