"""Scores of tokenizers and of generated images, with all that is needed to compare them."""
