"""Image tokenizers: an encoder, a vector quantizer, a decoder."""

from models.tokenizers.tokenizer import Tokenizer, TokenizerOutput, build_tokenizer

__all__ = ["Tokenizer", "TokenizerOutput", "build_tokenizer"]
