"""The steps of ``python -m bench.gpu_suite``: ``steps`` names and bounds them.

``probes`` times, ``bounds`` (with ``adversary``) holds hardware against proofs, ``tools`` runs other programs (on
``workout`` and ``workload``), ``tuned`` turns findings into launch tables. ``preflight`` compiles beforehand what all
of them launch, and ``carried`` takes it along; ``coarse`` is a study that needs no GPU.
"""
