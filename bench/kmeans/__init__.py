"""The benchmark of k-means: ``cases`` (problems, gate), ``contestants`` (ours and peers)."""
