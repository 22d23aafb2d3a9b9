"""The quantizers of transformers: classes derived from the originals, which look codes up here and keep all else.

``from vqkernels.compat.transformers import MimiEuclideanCodebook`` gets a ``MimiEuclideanCodebook`` with another
lookup; :func:`vqkernels.replace_quantizers` puts it into a model. transformers is imported when one of these names is
asked for, and no more of it than the file of that model. Differences are intended and listed in
``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from torch import nn

from vqkernels.compat._derived import Euclidean, Factorised, OfFrames, OfLogits, OfMaps, OfUnitMaps, Original, derived

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


def _model(model: str, lookup: type, around: tuple[str, ...] = ()) -> Original:
    return Original(f"transformers.models.{model}.modeling_{model}", lookup, around)


CLASSES = {
    "Apertus1p5VisionTokenizerVectorQuantizer": _model("apertus1p5", OfLogits),
    "ChameleonVQVAEVectorQuantizer": _model("chameleon", OfMaps),
    "DacVectorQuantize": _model("dac", Factorised, ("DacResidualVectorQuantizer",)),
    "Emu3VQVAEVectorQuantizer": _model("emu3", OfFrames),
    "EncodecEuclideanCodebook": _model(
        "encodec", Euclidean, ("EncodecVectorQuantization", "EncodecResidualVectorQuantizer")
    ),
    "GlmImageVQVAEVectorQuantizer": _model("glm_image", OfUnitMaps),
    "HiggsAudioV2TokenizerEuclideanCodebook": _model(
        "higgs_audio_v2_tokenizer",
        Euclidean,
        ("HiggsAudioV2TokenizerVectorQuantization", "HiggsAudioV2TokenizerResidualVectorQuantization"),
    ),
    "JanusVQVAEVectorQuantizer": _model("janus", OfMaps),
    "MimiEuclideanCodebook": _model(
        "mimi",
        Euclidean,
        ("MimiVectorQuantization", "MimiResidualVectorQuantizer", "MimiSplitResidualVectorQuantizer"),
    ),
    "WavTokenizerEuclideanCodebook": _model("wavtokenizer", Euclidean, ("WavTokenizerVectorQuantization",)),
    "XcodecEuclideanCodebook": _model(
        "xcodec", Euclidean, ("XcodecVectorQuantization", "XcodecResidualVectorQuantization")
    ),
}


def __getattr__(name: str) -> type[nn.Module]:
    return derived(name, CLASSES, globals())


def __dir__() -> list[str]:
    return __all__
