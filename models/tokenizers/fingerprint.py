"""Which tokenizer made some codes: a name for the weights that decide about them."""

from __future__ import annotations

import hashlib

import torch

from models.tokenizers.concept import ConceptTokenizer
from models.tokenizers.tokenizer import Tokenizer


def fingerprint(tokenizer: Tokenizer | ConceptTokenizer) -> str:
    """A hash of encoder and quantizer; a decoder trained further reads the same codes."""
    digest = hashlib.sha256()
    for part in ("encoder", "quantizer"):
        module = getattr(tokenizer, part)
        if module is None:  # tokens that are not quantized
            continue
        for name, tensor in sorted(module.state_dict().items()):
            content = tensor.detach().cpu().contiguous()
            digest.update(f"{part}.{name} {content.dtype} {tuple(content.shape)}".encode())
            digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
