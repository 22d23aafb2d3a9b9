"""Drop-in replacements: the classes other libraries offer, under their import paths, on this package's kernels."""
