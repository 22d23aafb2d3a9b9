"""The benchmark of the M nearest codes: ``cases`` (problems), ``searches`` (contestants)."""
