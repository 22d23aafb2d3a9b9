"""The claims of the papers, in the order in which they are tried."""

from __future__ import annotations

from models.claims.claim import Claim
from models.claims.lc_replacement import LC_REPLACEMENT
from models.claims.lc_transfer import LC_TRANSFER
from models.claims.lc_utilization import LC_CODEBOOK, LC_UTILIZATION
from models.claims.mgvq import MGVQ_GROUPS, NESTED_MASKING
from models.claims.priors import DEPTH_HEAD, KV_CACHE, LATENT_DIFFUSION, NAR_STEPS, SGC_VIDEO
from models.claims.semanticist import CONCEPT_PREFIX
from models.claims.seqgan import ENTROPY_USAGE, SEQGAN_RATIO, SEQGAN_TWO_PHASE
from models.claims.sgc import SEMANTIC_UNIQUENESS, SGC_AGGREGATORS, SGC_LOSSES, SGC_MFL, SGC_SHARE
from models.claims.token_classifier import TOKEN_CLASSIFIER

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        LC_UTILIZATION,
        MGVQ_GROUPS,
        NESTED_MASKING,
        LC_REPLACEMENT,
        CONCEPT_PREFIX,
        SEQGAN_TWO_PHASE,
        ENTROPY_USAGE,
        SEMANTIC_UNIQUENESS,
        LC_CODEBOOK,
        KV_CACHE,
        NAR_STEPS,
        DEPTH_HEAD,
        SGC_MFL,
        SGC_LOSSES,
        SGC_SHARE,
        SGC_AGGREGATORS,
        SEQGAN_RATIO,
        SGC_VIDEO,
        LATENT_DIFFUSION,
        LC_TRANSFER,
        TOKEN_CLASSIFIER,
    )
}
