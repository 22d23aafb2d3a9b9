"""vqkernels: vector quantization for learned tokenizers, exact, without the N x K matrix.

Functions: :func:`nearest_code`, :func:`top_codes`, :func:`multilevel_nearest_code`, :func:`quantize`,
:func:`gather_codes`, :func:`estimate_gradient`, :func:`code_stats`, :func:`ema_update_`,
:func:`soft_assignment_entropy`, :func:`kmeans`, :func:`residual_kmeans`, :func:`balanced_codes`,
:func:`semantic_ids`. Modules: :class:`VectorQuantizer` and its codebook parts;
:class:`VectorQuantize`, the drop-in for the class of that name; :func:`replace_quantizers` swaps the quantizers of
other libraries inside a model. Estimator: :class:`KMeans`. For ONNX files: :func:`onnx_translations`.
``python -m vqkernels.info`` tells what is built and which backend serves which op.

Letters, package-wide: N vectors, K codes, D code dimension, G groups, L levels, M top codes.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from vqkernels._core.backend import Choice, explain, use_backend
from vqkernels.kmeans import (
    KMeans,
    KMeansResult,
    ResidualKMeansResult,
    SemanticIds,
    balanced_codes,
    kmeans,
    residual_kmeans,
    semantic_ids,
)
from vqkernels.nn import (
    Ema,
    Frozen,
    FullCodebook,
    Learned,
    OnlineClustering,
    QuantizerOutput,
    Regularizer,
    ResidualQuantizer,
    SemanticClustering,
    Sinkhorn,
    Usage,
    VectorQuantizer,
)
from vqkernels.ops.code_range import code_range
from vqkernels.ops.code_stats import CodeStats, code_stats
from vqkernels.ops.ema_update import ema_update_
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.multilevel_nearest_code import multilevel_nearest_code
from vqkernels.ops.nearest_code import NearestCode, nearest_code
from vqkernels.ops.quantize import Quantized, estimate_gradient, quantize
from vqkernels.ops.reanchor import reanchor_, semantic_reanchor_
from vqkernels.ops.soft_assignment_entropy import SoftEntropy, soft_assignment_entropy
from vqkernels.ops.top_codes import TopCodes, top_codes

if _TYPE_CHECKING:
    from vqkernels.compat.replace import replace_quantizers
    from vqkernels.compat.vector_quantize_pytorch import VectorQuantize
    from vqkernels.onnx import onnx_translations

__version__ = "0.2.0"

__all__ = [
    "Choice",
    "CodeStats",
    "Ema",
    "Frozen",
    "FullCodebook",
    "KMeans",
    "KMeansResult",
    "Learned",
    "NearestCode",
    "OnlineClustering",
    "Quantized",
    "QuantizerOutput",
    "Regularizer",
    "ResidualKMeansResult",
    "ResidualQuantizer",
    "SemanticClustering",
    "SemanticIds",
    "Sinkhorn",
    "SoftEntropy",
    "TopCodes",
    "Usage",
    "VectorQuantize",
    "VectorQuantizer",
    "__version__",
    "balanced_codes",
    "code_range",
    "code_stats",
    "ema_update_",
    "estimate_gradient",
    "explain",
    "gather_codes",
    "kmeans",
    "multilevel_nearest_code",
    "nearest_code",
    "onnx_translations",
    "quantize",
    "reanchor_",
    "replace_quantizers",
    "residual_kmeans",
    "semantic_ids",
    "semantic_reanchor_",
    "soft_assignment_entropy",
    "top_codes",
    "use_backend",
]


# what has to do with other libraries is loaded when it is first asked for
_LAZY = {
    "VectorQuantize": "vqkernels.compat.vector_quantize_pytorch",
    "onnx_translations": "vqkernels.onnx",
    "replace_quantizers": "vqkernels.compat.replace",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_LAZY[name]), name)
