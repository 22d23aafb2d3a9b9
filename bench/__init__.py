"""Benchmarks of vqkernels against what people use now; see README.md in this folder."""
