"""Which options of :class:`VectorQuantize` exclude each other."""

from __future__ import annotations

CONFLICTS = {
    "exclusive": "straight_through, rotation_trick, directional_reparam: expected at most one of them, got several",
    "cosine_learnable": "learnable_codebook: expected False with use_cosine_sim, got True",
    "soft_learnable": "learnable_codebook: expected False with straight_through, got True",
    "ema_learnable": "ema_update: expected False with a learnable codebook, got True",
    "bridge_fixed": "learnable_codebook: expected True with vq_bridge, got False",
    "diveq_dead": "threshold_ema_dead_code: expected more than 0 with directional_reparam, got 0",
    "sync_update_fixed": "learnable_codebook: expected True with sync_update_v, got False",
    "affine_cosine": "affine_param: expected False with use_cosine_sim, got True",
}


def check_options(**conflicts: bool) -> None:
    for name, conflict in conflicts.items():
        if conflict:
            raise ValueError(CONFLICTS[name])
