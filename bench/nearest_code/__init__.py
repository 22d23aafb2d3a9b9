"""The lookup benchmark: ``cases`` (problems), ``lookups`` (contestants), ``gate`` (float64 truth)."""
