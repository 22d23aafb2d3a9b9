"""K-means with any number of centroids: in memory, from disk, over several processes. README.md has the maths."""

from vqkernels.kmeans.api import kmeans
from vqkernels.kmeans.balanced import balanced_codes
from vqkernels.kmeans.estimator import KMeans
from vqkernels.kmeans.lloyd import KMeansResult
from vqkernels.kmeans.residual import ResidualKMeansResult, residual_kmeans
from vqkernels.kmeans.semantic_ids import SemanticIds, semantic_ids

__all__ = [
    "KMeans",
    "KMeansResult",
    "ResidualKMeansResult",
    "SemanticIds",
    "balanced_codes",
    "kmeans",
    "residual_kmeans",
    "semantic_ids",
]
