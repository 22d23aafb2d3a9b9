"""Online clustering: codes that are hardly used move to vectors of the batch; see README.md in this folder."""

from vqkernels.ops.reanchor.anchors import Anchors, drawn_vectors, random_vectors
from vqkernels.ops.reanchor.api import ANCHORS, blend_, choose_anchors, reanchor_
from vqkernels.ops.reanchor.semantic import (
    SemanticAnchors,
    blend_semantic_,
    choose_semantic_anchors,
    level_weights_of,
    levels_of,
    semantic_reanchor_,
)

__all__ = [
    "ANCHORS",
    "Anchors",
    "SemanticAnchors",
    "blend_",
    "blend_semantic_",
    "choose_anchors",
    "choose_semantic_anchors",
    "drawn_vectors",
    "level_weights_of",
    "levels_of",
    "random_vectors",
    "reanchor_",
    "semantic_reanchor_",
]
