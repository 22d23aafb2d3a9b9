"""Recipes, one file a system: functions that return a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from models.recipes import classifiers, cvq, mgvq, patch, priors, semanticist, seqgan, sgc, vqgan, vqgan_lc
from models.training.classifier_run import ClassifierRun
from models.training.concept_run import ConceptRun
from models.training.prior_run import PriorRun
from models.training.tokenizer_run import TokenizerRun

TOKENIZERS: dict[str, Callable[[], TokenizerRun]] = {
    recipe.__name__: recipe
    for recipe in (
        patch.patch_fc,
        patch.patch_ema,
        patch.patch_cvq,
        patch.patch_lc,
        patch.patch_groups,
        vqgan.vqgan,
        vqgan.vqgan_fc,
        vqgan.vqgan_fc_f8,
        vqgan.vqgan_ema,
        vqgan.vqgan_pocket,
        vqgan_lc.vqgan_lc,
        vqgan_lc.vqgan_lc_f8,
        vqgan_lc.vqgan_lc_pocket,
        cvq.cvq,
        cvq.cvq_pocket,
        mgvq.mgvq_g2,
        mgvq.mgvq_g4,
        mgvq.mgvq_g8,
        mgvq.mgvq_g16,
        mgvq.mgvq_g4_f8,
        mgvq.mgvq_g8_f8,
        mgvq.mgvq_g8_f32,
        mgvq.mgvq_vqgan,
        mgvq.mgvq_pocket,
        seqgan.seqgan,
        seqgan.seqgan_pocket,
        sgc.sgc,
        sgc.sgc_nuscenes,
        sgc.sgc_pocket,
        sgc.sgc_clusters,
    )
}

PRIORS: dict[str, Callable[[], PriorRun]] = {
    recipe.__name__: recipe
    for recipe in (
        priors.ar_pocket,
        priors.gpt_pocket,
        priors.nar_pocket,
        priors.grouped_pocket,
        priors.parallel_pocket,
        priors.video_pocket,
        priors.ldm_pocket,
        priors.dit_pocket,
        priors.sit_pocket,
        priors.concept_pocket,
        priors.seq_ar_base,
        priors.seq_ar_large,
        priors.seq_nar_base,
        priors.seq_nar_large,
        priors.lc_gpt,
        priors.llamagen_b,
        priors.llamagen_l,
        priors.llamagen_xl,
        priors.llamagen_xxl,
        priors.mgvq_xxl,
        priors.sgc_image,
        priors.sgc_video,
        priors.ldm,
        priors.dit_xl,
        priors.sit_xl,
        priors.epsilon_llamagen_l,
    )
}

CONCEPTS: dict[str, Callable[[], ConceptRun]] = {
    recipe.__name__: recipe
    for recipe in (
        semanticist.semanticist,
        semanticist.semanticist_xl,
        semanticist.semanticist_pocket,
        semanticist.semanticist_vq_pocket,
        semanticist.semanticist_groups_pocket,
        semanticist.semanticist_lc_pocket,
    )
}


CLASSIFIERS: dict[str, Callable[[], ClassifierRun]] = {
    recipe.__name__: recipe for recipe in (classifiers.token_classifier, classifiers.token_classifier_pocket)
}


def with_num_codes(config: TokenizerRun, total: int) -> TokenizerRun:
    """The same recipe with ``total`` codes, divided among its groups."""
    groups = config.quantizer.groups
    if total % groups:
        raise ValueError(f"total: expected a multiple of {groups} groups, got {total}")
    return dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, num_codes=total // groups))
