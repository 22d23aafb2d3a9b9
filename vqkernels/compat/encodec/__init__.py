"""The quantizers of encodec: same names, signatures, results and state dicts.

``from vqkernels.compat.encodec.quantization import ResidualVectorQuantizer`` replaces the import of the original; the
modules have the original's paths. Differences are intended and listed in ``vqkernels/compat/README.md``.
"""
