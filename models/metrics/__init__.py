"""Scores of tensors."""
