"""Online clustering: codes that are hardly used move to vectors of the batch; see README.md in this folder."""

from vqkernels.ops.reanchor.anchors import Anchors, drawn_vectors, random_vectors
from vqkernels.ops.reanchor.api import blend_, check_policy, choose_anchors, reanchor_
from vqkernels.ops.reanchor.semantic import semantic_reanchor_

__all__ = [
    "Anchors",
    "blend_",
    "check_policy",
    "choose_anchors",
    "drawn_vectors",
    "random_vectors",
    "reanchor_",
    "semantic_reanchor_",
]
