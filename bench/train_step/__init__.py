"""Whole training steps of a drop-in quantizer."""
