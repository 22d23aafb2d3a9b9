"""Quantizer modules: one composable :class:`VectorQuantizer`, its codebook kinds, its usage statistics, entropy
regularizers."""

from vqkernels.nn.config import (
    CodebookConfig,
    Ema,
    Frozen,
    FullCodebook,
    Learned,
    OnlineClustering,
    Regularizer,
    SemanticClustering,
    Sinkhorn,
)
from vqkernels.nn.output import QuantizerOutput
from vqkernels.nn.quantizer import VectorQuantizer
from vqkernels.nn.regularizers import (
    IBQ_ENTROPY,
    LFQ_ENTROPY,
    LLAMAGEN_ENTROPY,
    MAGVIT2_ENTROPY,
    SEQGAN_ENTROPY,
    EntropyLoss,
    SignEntropy,
    sign_entropy,
)
from vqkernels.nn.residual import ResidualQuantizer
from vqkernels.nn.usage import Usage

__all__ = [
    "IBQ_ENTROPY",
    "LFQ_ENTROPY",
    "LLAMAGEN_ENTROPY",
    "MAGVIT2_ENTROPY",
    "SEQGAN_ENTROPY",
    "CodebookConfig",
    "Ema",
    "EntropyLoss",
    "Frozen",
    "FullCodebook",
    "Learned",
    "OnlineClustering",
    "QuantizerOutput",
    "Regularizer",
    "ResidualQuantizer",
    "SemanticClustering",
    "SignEntropy",
    "Sinkhorn",
    "Usage",
    "VectorQuantizer",
    "sign_entropy",
]
