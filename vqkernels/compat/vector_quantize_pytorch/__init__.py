"""The quantizers of vector-quantize-pytorch: same names, signatures, results and state dicts.

``from vqkernels.compat.vector_quantize_pytorch import ResidualVQ`` replaces the import of the original, and the
submodules have the original's names. A class is loaded when it is first asked for. Differences are intended and
listed in ``vqkernels/compat/README.md``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqkernels.compat.vector_quantize_pytorch.binary_mapper import BinaryMapper as BinaryMapper
    from vqkernels.compat.vector_quantize_pytorch.evo_lookup_free_quantization import EvoLFQ as EvoLFQ
    from vqkernels.compat.vector_quantize_pytorch.finite_scalar_perturbation import FSP as FSP
    from vqkernels.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ as FSQ
    from vqkernels.compat.vector_quantize_pytorch.hierarchical_vq import HierarchicalVQ as HierarchicalVQ
    from vqkernels.compat.vector_quantize_pytorch.latent_quantization import LatentQuantize as LatentQuantize
    from vqkernels.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ as LFQ
    from vqkernels.compat.vector_quantize_pytorch.random_projection_quantizer import (
        RandomProjectionQuantizer as RandomProjectionQuantizer,
    )
    from vqkernels.compat.vector_quantize_pytorch.residual_fsq import GroupedResidualFSQ as GroupedResidualFSQ
    from vqkernels.compat.vector_quantize_pytorch.residual_fsq import ResidualFSQ as ResidualFSQ
    from vqkernels.compat.vector_quantize_pytorch.residual_lfq import GroupedResidualLFQ as GroupedResidualLFQ
    from vqkernels.compat.vector_quantize_pytorch.residual_lfq import ResidualLFQ as ResidualLFQ
    from vqkernels.compat.vector_quantize_pytorch.residual_sim_vq import ResidualSimVQ as ResidualSimVQ
    from vqkernels.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ as GroupedResidualVQ
    from vqkernels.compat.vector_quantize_pytorch.residual_vq import ResidualVQ as ResidualVQ
    from vqkernels.compat.vector_quantize_pytorch.sim_vq import SimVQ as SimVQ
    from vqkernels.compat.vector_quantize_pytorch.utils import Sequential as Sequential
    from vqkernels.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize as VectorQuantize

# public name -> the submodule that defines it
_SUBMODULES = {
    "BinaryMapper": "binary_mapper",
    "EvoLFQ": "evo_lookup_free_quantization",
    "FSP": "finite_scalar_perturbation",
    "FSQ": "finite_scalar_quantization",
    "GroupedResidualFSQ": "residual_fsq",
    "GroupedResidualLFQ": "residual_lfq",
    "LFQ": "lookup_free_quantization",
    "LatentQuantize": "latent_quantization",
    "ResidualFSQ": "residual_fsq",
    "ResidualLFQ": "residual_lfq",
    "Sequential": "utils",
    "GroupedResidualVQ": "residual_vq",
    "HierarchicalVQ": "hierarchical_vq",
    "RandomProjectionQuantizer": "random_projection_quantizer",
    "ResidualSimVQ": "residual_sim_vq",
    "ResidualVQ": "residual_vq",
    "SimVQ": "sim_vq",
    "VectorQuantize": "vector_quantize_pytorch",
}

__all__ = list(_SUBMODULES)


def __getattr__(name: str) -> object:
    if name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_SUBMODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
