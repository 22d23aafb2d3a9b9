"""Import path of the original."""
