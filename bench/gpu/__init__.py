"""The steps of ``python -m bench.gpu_suite``: ``steps`` (what and how long), ``probes``, ``kernels``, ``coarse``."""
