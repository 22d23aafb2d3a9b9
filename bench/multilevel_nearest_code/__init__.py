"""The benchmark of the multi-level lookup: ``cases`` (problems), ``lookups`` (contestants)."""
