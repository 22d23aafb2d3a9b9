"""What float64 says to the answers of adapters that have changed nothing."""

from __future__ import annotations

from typing import Any

import torch
from modules import Arguments

from vqkernels.testing import assert_exact_lookup

LONGEST = 2.0**62  # of a vector that is looked up for more than index 0


def nearest(
    rows: torch.Tensor,  # [..., D]
    codebook: torch.Tensor,  # [K, D]
    indices: torch.Tensor,  # as many, in order; -1 for one that was left out
) -> None:
    """Assert that the codes are the nearest ones."""
    rows, indices = rows.detach().reshape(-1, rows.shape[-1]), indices.reshape(-1).long()
    taken = (rows.double().norm(dim=1) <= LONGEST) & (indices >= 0)
    rows, indices, codebook = rows[taken], indices[taken], codebook.detach()
    distance = (rows.double() - codebook[indices].double()).square().sum(dim=1).float()
    assert_exact_lookup(rows, codebook, indices, distance)


def of_map(module: Any, arguments: Arguments, result: Any) -> None:
    """Of taming, diffusers and llamagen."""
    if getattr(module, "remap", None) is None and not getattr(module, "l2_norm", False):
        nearest(arguments["z"].movedim(1, -1), module.embedding.weight, result[2][2])


def of_rows(module: Any, arguments: Arguments, result: torch.Tensor) -> None:
    nearest(arguments["x"], module.embed, result)


def of_sequence(module: Any, arguments: Arguments, result: torch.Tensor) -> None:
    if isinstance(module.project_in, torch.nn.Identity):
        nearest(arguments["x"].movedim(1, -1), module.codebook, result)


def of_first_layer(module: Any, arguments: Arguments, result: torch.Tensor) -> None:
    of_sequence(module.layers[0], arguments, result[0])


def of_vector_quantize(module: Any, arguments: Arguments, result: Any) -> None:
    plain = module.heads == 1 and not module.use_cosine_sim and not module.has_projections and not module.training
    asked = ("indices", "topk", "codebook_transform_fn")
    if plain and all(arguments.get(name) is None for name in asked):
        x = arguments["x"].movedim(module._channel_dim(arguments["x"].dim()), -1)
        # which works in float32
        nearest(x.float(), module._codebook.codes()[0], result[1])


def of_sim_vq(module: Any, arguments: Arguments, result: Any) -> None:
    x = arguments["x"].movedim(1, -1) if module.channel_first else arguments["x"]
    nearest(x.float(), module.codebook.float(), result[1])


def of_signs(module: Any, arguments: Arguments, result: Any) -> None:
    """Of lookup-free quantization: the bits of an index are signs."""
    x = arguments["x"]
    first = x.dim() >= 4 if module.channel_first is None else module.channel_first
    x = (x.movedim(1, -1) if first else x).detach().double()
    if module.orthogonal_rot is not None or module.has_projections:
        return
    finite = x.isfinite().all(dim=-1)
    truth = ((x > 0).unflatten(-1, (module.num_codebooks, -1)) * module.mask).sum(dim=-1)
    found = result[0][1] if arguments.get("return_loss_breakdown") else result[1]
    found = found if module.keep_num_codebooks_dim else found[..., None]
    assert torch.equal(found[finite], truth[finite])


def of_values(module: Any, arguments: Arguments, result: torch.Tensor) -> None:
    """Of latent quantization: every entry is the nearest of the values of its dimension."""
    z, found = arguments["z"].detach().double(), result.detach().double()
    finite = z.isfinite() & (z.abs() <= LONGEST)
    for dim, values in enumerate(module.values_per_latent):
        error, least = (z[..., dim] - found[..., dim]).abs(), (z[..., dim, None] - values.double()).abs().amin(dim=-1)
        # one rounding of each difference, one of the value itself
        slack = (z[..., dim].abs() + values.double().abs().amax()) * torch.finfo(result.dtype).eps
        assert bool((~finite[..., dim] | (error <= least + slack)).all())
