"""K-means with any number of centroids: in memory, from disk, over several processes. README.md has the maths."""

from vqkernels.kmeans.api import kmeans
from vqkernels.kmeans.estimator import KMeans
from vqkernels.kmeans.lloyd import KMeansResult

__all__ = ["KMeans", "KMeansResult", "kmeans"]
