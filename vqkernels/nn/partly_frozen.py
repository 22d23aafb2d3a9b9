"""Codes that stay as they are while the others of their codebook train."""

from __future__ import annotations

import torch
from torch import nn

from vqkernels._core.checks import check_mask
from vqkernels.nn.codebook import Codebook


class PartlyFrozen(nn.Module):
    """A quantizer that may hold on to some of its codes, whatever happens in its table."""

    table: Codebook
    frozen_codes: torch.Tensor  # [G, K] bool
    frozen_values: torch.Tensor  # [G, K, D], of all codes when they were frozen

    @torch.no_grad()
    def freeze_codes(
        self,
        mask: torch.Tensor,  # [K] or [G, K] bool
    ) -> None:
        """Hold on to the codes where the mask is True: from now on no gradient, update rule or fit moves them.

        For vocabularies that are extended: the old codes, loaded before, keep their meaning while new ones train.
        The frozen codes become part of the state; a module that loads such a state has called this before, with
        any mask. Called again, it starts from the codes in effect.

        Args:
            mask: True for the codes to freeze, in every group alike or for each.

        Raises:
            TypeError: if it is not boolean.
            ValueError: on another shape.
        """
        groups, num_codes = self.table.groups, self.table.num_codes
        each = mask.dim() == 2 if isinstance(mask, torch.Tensor) else False
        check_mask("mask", mask, (groups, num_codes) if each else (num_codes,), "[G, K]" if each else "[K]")
        codes = self._codes().detach().clone()
        self.register_buffer("frozen_codes", mask.to(codes.device).expand(groups, num_codes).clone())
        self.register_buffer("frozen_values", codes)

    def _codes(self) -> torch.Tensor:  # [G, K, D]
        """The codes that are looked up."""
        codes = self.table.codes()
        if "frozen_codes" not in self._buffers:
            return codes
        # in the place of whatever a rule or an optimizer made of them
        return torch.where(self.frozen_codes[..., None], self.frozen_values.to(codes.dtype), codes)
