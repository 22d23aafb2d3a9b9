"""The quantizers of transformers: classes derived from the originals, which look codes up here and keep all else.

``from vqkernels.compat.transformers import MimiEuclideanCodebook`` gets a ``MimiEuclideanCodebook`` with another
lookup; :func:`vqkernels.replace_quantizers` puts it into a model. transformers is imported when one of these names is
asked for, and no more of it than the file of that model. Differences are intended and listed in
``vqkernels/compat/README.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vqkernels.compat._feature_maps import match
from vqkernels.nn.codebook import unit
from vqkernels.ops.nearest_code import nearest_code

# CLASSES makes the names
__all__ = [  # noqa: F822
    "Apertus1p5VisionTokenizerVectorQuantizer",
    "ChameleonVQVAEVectorQuantizer",
    "DacVectorQuantize",
    "Emu3VQVAEVectorQuantizer",
    "EncodecEuclideanCodebook",
    "GlmImageVQVAEVectorQuantizer",
    "HiggsAudioV2TokenizerEuclideanCodebook",
    "JanusVQVAEVectorQuantizer",
    "MimiEuclideanCodebook",
    "WavTokenizerEuclideanCodebook",
    "XcodecEuclideanCodebook",
]


class _Euclidean:
    """Codecs for audio: the nearest code, without gradient."""

    embed: torch.Tensor  # [K, D]

    def quantize(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N]
        return nearest_code(hidden_states, self.embed).indices


class _OfFrames:
    """Emu3: the nearest code of every vector of a film, without gradient."""

    embedding: nn.Embedding  # [K, D]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:  # [B, T, D, H, W] -> [B, T, H, W]
        return nearest_code(hidden_state.movedim(2, -1), self.embedding.weight).indices


class _OfLogits:
    """Apertus: the code with the largest product, without gradient."""

    embedding: nn.Linear  # [K, D]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [B, D, H, W] -> [B, H, W]
        return nearest_code(hidden_states.movedim(1, -1), self.embedding.weight, metric="dot").indices


class _OfMaps:
    """Chameleon, Janus: quantizers of the VQGAN family, with their loss."""

    embedding: nn.Embedding  # [K, D]
    beta: float
    _normalized = False

    def forward(
        self,
        hidden_state: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [B, D, H, W], [], [B H W]
        weight = self.embedding.weight
        codebook = unit(weight) if self._normalized else weight
        found = match(hidden_state, codebook, normalize=self._normalized)
        loss = found.encoder_loss + self.beta * found.codebook_loss
        return found.quantized(), loss, found.indices


class _OfUnitMaps(_OfMaps):
    """GLM-Image: the same with vectors and codes of unit length."""

    _normalized = True


class _Factorised:
    """DAC: the nearest of the codes at unit length, whose values are the codes as they are."""

    codebook: nn.Embedding  # [K, D]

    def decode_latents(
        self,
        hidden_states: torch.Tensor,  # [B, D, T]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, D, T], [B, T]
        with _present(self.codebook), torch.no_grad():
            rows, codes = (_unit(x) for x in (hidden_states.movedim(1, -1), self.codebook.weight))
            indices = nearest_code(rows, codes).indices
        return self.codebook(indices).transpose(1, 2), indices


def _unit(x: torch.Tensor) -> torch.Tensor:  # [..., D]
    """Unit length, in at least float32."""
    return unit(x.to(torch.promote_types(x.dtype, torch.float32)))


@contextmanager
def _present(module: nn.Module) -> Iterator[None]:
    """Have the weights of a module at hand that accelerate may keep elsewhere until its forward."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    yield
    if hook is not None:
        hook.post_forward(module, ())


class Original(NamedTuple):
    """Where transformers has a class, and what takes the place of its methods."""

    model: str
    lookup: type
    around: tuple[str, ...] = ()  # classes of that model that quantize by this one alone

    @property
    def module(self) -> str:
        return f"transformers.models.{self.model}.modeling_{self.model}"

    @property
    def expected(self) -> tuple[str, ...]:
        """What the lookup asks of the class or takes the place of."""
        kinds = [kind for kind in self.lookup.__mro__ if kind is not object]
        methods = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}
        return tuple(sorted(methods.union(*(kind.__annotations__ for kind in kinds))))


CLASSES = {
    "Apertus1p5VisionTokenizerVectorQuantizer": Original("apertus1p5", _OfLogits),
    "ChameleonVQVAEVectorQuantizer": Original("chameleon", _OfMaps),
    "DacVectorQuantize": Original("dac", _Factorised, ("DacResidualVectorQuantizer",)),
    "Emu3VQVAEVectorQuantizer": Original("emu3", _OfFrames),
    "EncodecEuclideanCodebook": Original(
        "encodec", _Euclidean, ("EncodecVectorQuantization", "EncodecResidualVectorQuantizer")
    ),
    "GlmImageVQVAEVectorQuantizer": Original("glm_image", _OfUnitMaps),
    "HiggsAudioV2TokenizerEuclideanCodebook": Original(
        "higgs_audio_v2_tokenizer",
        _Euclidean,
        ("HiggsAudioV2TokenizerVectorQuantization", "HiggsAudioV2TokenizerResidualVectorQuantization"),
    ),
    "JanusVQVAEVectorQuantizer": Original("janus", _OfMaps),
    "MimiEuclideanCodebook": Original(
        "mimi",
        _Euclidean,
        ("MimiVectorQuantization", "MimiResidualVectorQuantizer", "MimiSplitResidualVectorQuantizer"),
    ),
    "WavTokenizerEuclideanCodebook": Original("wavtokenizer", _Euclidean, ("WavTokenizerVectorQuantization",)),
    "XcodecEuclideanCodebook": Original(
        "xcodec", _Euclidean, ("XcodecVectorQuantization", "XcodecResidualVectorQuantization")
    ),
}


def __getattr__(name: str) -> type[nn.Module]:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    original = CLASSES[name]
    base = getattr(importlib.import_module(original.module), name)
    about = {
        "__module__": __name__,
        "__doc__": f"``{name}`` of transformers with an exact lookup in O(N + K) memory.",
    }
    # found by its name from now on, which is what copies and pickles of modules go by
    globals()[name] = type(name, (original.lookup, base), about)
    kind: type[nn.Module] = globals()[name]
    return kind


def __dir__() -> list[str]:
    return __all__
