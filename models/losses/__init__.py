"""Losses of tensors."""
