"""Codes shifted and scaled to the running statistics of the batches (Huh et al. 2023, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch

from vqkernels._core.devices import widest
from vqkernels._core.recomputation import recomputing
from vqkernels.compat._running_means import held
from vqkernels.compat.vector_quantize_pytorch._codebook import Codebook


class AffineCodebook(Codebook):
    """Codes are kept in a space of their own and looked up in that of the vectors."""

    batch_mean: torch.Tensor | None  # [H, 1, D], None before the first training step
    batch_variance: torch.Tensor | None
    codebook_mean: torch.Tensor  # [H, 1, D]
    codebook_variance: torch.Tensor
    codebook_mean_needs_init: torch.Tensor  # [] bool
    codebook_variance_needs_init: torch.Tensor

    def __init__(
        self,
        *args: Any,
        sync_affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sync_affine_param = sync_affine_param
        self.affine_param_batch_decay = affine_param_batch_decay
        self.affine_param_codebook_decay = affine_param_codebook_decay
        shape = (self.num_codebooks, 1, self.embed.shape[2])
        for name, start in (("mean", 0.0), ("variance", 1.0)):
            self.register_buffer(f"batch_{name}", None)
            self.register_buffer(f"codebook_{name}_needs_init", torch.tensor(True))
            self.register_buffer(f"codebook_{name}", torch.full(shape, start))

    def codes(self) -> torch.Tensor:
        embed = super().codes()
        if self.batch_mean is None:
            return embed
        return (embed - self.codebook_mean) * self._ratio() + self.batch_mean

    def moving(self) -> list[torch.Tensor]:
        running = self.batch_mean, self.batch_variance, self.codebook_mean, self.codebook_variance
        return [*super().moving(), *(tensor for tensor in running if tensor is not None)]

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        if self.batch_mean is None:
            return x
        moved: torch.Tensor = (x.transpose(0, 1) - self.batch_mean) / self._ratio() + self.codebook_mean
        return moved.transpose(0, 1)

    def prepare(self, x: torch.Tensor, indices: torch.Tensor) -> None:
        super().prepare(x, indices)
        if not recomputing():
            self.update_affine(x, indices)

    @torch.no_grad()
    def update_affine(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """Take one batch into the running statistics."""
        embed = self.embed.float()
        variance, mean = torch.var_mean(embed, dim=1, correction=0, keepdim=True)
        for name, value in (("codebook_mean", mean), ("codebook_variance", variance)):
            first = getattr(self, f"{name}_needs_init")
            old = getattr(self, name)
            new = torch.where(first, value, torch.lerp(value, old.to(value.dtype), self.affine_param_codebook_decay))
            old.copy_(torch.where(held(old, new)[..., None], new, old))
            first.fill_(False)
        mean, some = self._mean(x, indices)
        # float32 holds the squares, and their mean, but not always their sum
        variance, _ = self._mean((x - mean.transpose(0, 1)).to(widest(x.device)).square(), indices)
        for name, value in (("batch_mean", mean), ("batch_variance", variance)):
            old = getattr(self, name)
            if old is None:
                start = torch.where(some, value, float(name == "batch_variance"))
                # a step in inference mode would leave a tensor that no other may write
                with torch.inference_mode(False):
                    setattr(self, name, start.clone())
            else:
                new = torch.lerp(value, old.to(value.dtype), self.affine_param_batch_decay)
                old.copy_(torch.where(some & held(old, new)[..., None], new, old))

    def _mean(self, x: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[H, 1, D]`` over the vectors that take part, and whether there is any, ``[H, 1, 1]``."""
        # one code that all of them have
        (count, total), _ = self._stats_of_all(x, indices.clamp(max=0), num_codes=1, sync=self.sync_affine_param)
        mean: torch.Tensor = total / count.clamp(min=1)[..., None]
        return mean.float(), (count > 0)[..., None]

    def _ratio(self) -> torch.Tensor:  # [H, 1, D]
        assert self.batch_variance is not None
        ratio: torch.Tensor = (
            self.batch_variance.clamp(min=1e-5).sqrt() / self.codebook_variance.clamp(min=1e-5).sqrt()
        )
        return ratio

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # what a first training step would have made
        for name in ("batch_mean", "batch_variance"):
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved, device=self.embed.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
