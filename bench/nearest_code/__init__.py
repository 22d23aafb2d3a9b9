"""The lookup benchmark: ``cases`` (problems), ``lookups`` and ``gpu_lookups`` (contestants)."""
