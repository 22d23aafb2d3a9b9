"""The entropy benchmark: ``cases`` (problems and their truth), ``losses`` (contestants)."""
