"""Priors of the papers, at the size of the papers: ImageNet at 256 pixels unless said otherwise.

Batch sizes are those of one process, so that of a paper is divided by the number of processes on the command line.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.networks import dit, gpt, ldm_unet
from models.networks.depth_head import DepthHeadConfig
from models.networks.flow_head import FlowHeadConfig
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig
from models.priors.concept import ConceptConfig
from models.priors.diffusion import DDPMConfig, DiffusionConfig, FlowConfig
from models.priors.grouped import GroupedConfig
from models.priors.masked import MaskedConfig
from models.priors.video import VideoConfig
from models.recipes.vqgan import IMAGENET, PAPER
from models.training.config import OptimizerConfig, StageConfig
from models.training.prior_run import PriorConfig, PriorRun

_CODES, _LATENTS = "codes:codes", "latents:latents"  # where models.extract_codes is told to put them
_LARGE: dict[str, Any] = {**PAPER, "val_samples": 64, "mixed_precision": "bf16"}


def seq_ar_base() -> PriorRun:
    """SeQ-GAN's AR Base, 172 M. Steps and batch are those of its ablations; the rate is not printed: MaskGIT's."""
    return _seq("seq_ar_base", AutoregressiveConfig(network=gpt.seq_base()))


def seq_ar_large() -> PriorRun:
    """SeQ-GAN's AR Large, 305 M."""
    return _seq("seq_ar_large", AutoregressiveConfig(network=gpt.seq_large()))


def seq_nar_base() -> PriorRun:
    """SeQ-GAN's NAR Base: the same network, bidirectional, trained as MaskGIT."""
    return _seq("seq_nar_base", MaskedConfig(network=replace(gpt.seq_base(), causal=False)))


def seq_nar_large() -> PriorRun:
    """SeQ-GAN's NAR Large."""
    return _seq("seq_nar_large", MaskedConfig(network=replace(gpt.seq_large(), causal=False)))


def lc_gpt() -> PriorRun:
    """VQGAN-LC's GPT: a fifth of the input codes replaced, 100 epochs of batch 1024, 5 of them warm-up."""
    steps, warmup = (epochs * IMAGENET // 1024 for epochs in (100, 5))
    optimizer = OptimizerConfig(
        kind="adamw", lr=4.5e-4, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=warmup, schedule="linear"
    )
    stage = StageConfig(steps=steps, batch_size=1024, optimizer=optimizer)
    return _run("lc_gpt", AutoregressiveConfig(network=gpt.vqgan_lc(), pkeep=0.8), stage)


def llamagen_b() -> PriorRun:
    """LlamaGen-B, 111 M: 300 epochs of batch 256 at a constant rate, ten-crop codes."""
    return _run("llamagen_b", AutoregressiveConfig(network=gpt.llamagen_b()), _llamagen())


def llamagen_l() -> PriorRun:
    """LlamaGen-L, 343 M."""
    return _run("llamagen_l", AutoregressiveConfig(network=gpt.llamagen_l()), _llamagen())


def llamagen_xl() -> PriorRun:
    """LlamaGen-XL, 775 M; on several GPUs with --parallel fsdp2."""
    return _run("llamagen_xl", AutoregressiveConfig(network=gpt.llamagen_xl()), _llamagen())


def llamagen_xxl() -> PriorRun:
    """LlamaGen-XXL, 1.4 B; on several GPUs with --parallel fsdp2."""
    return _run("llamagen_xxl", AutoregressiveConfig(network=gpt.llamagen_xxl()), _llamagen())


def mgvq_xxl() -> PriorRun:
    """MGVQ: LlamaGen-XXL from the vectors of the codes, a causal head over the groups; 24x24 tokens of 384 pixels."""
    return _run("mgvq_xxl", GroupedConfig(network=gpt.mgvq_xxl(), head=DepthHeadConfig()), _llamagen())


def sgc_image() -> PriorRun:
    """SGC-VQGAN's image prior: VQGAN's GPT without classes. The paper prints no training of it: LlamaGen's."""
    return replace(_run("sgc_image", AutoregressiveConfig(network=gpt.vqgan_lc()), _llamagen()), conditional=False)


def sgc_video() -> PriorRun:
    """SGC-VQGAN's video prior: eight frames of 18x32 codes to the next one; its size is not printed: the same GPT."""
    stage = replace(_llamagen(), batch_size=32, steps=200_000)
    return replace(_run("sgc_video", VideoConfig(network=gpt.vqgan_lc()), stage), conditional=False)


def ldm() -> PriorRun:
    """VQGAN-LC's LDM on 8x16x16 latents: 100 epochs of batch 448, running mean of the weights."""
    process = DDPMConfig(betas="sqrt_linear", beta_first=0.0015, beta_last=0.0195, learned_variance=False)
    prior = DiffusionConfig(network=ldm_unet.ldm_f16(), process=process)
    optimizer = OptimizerConfig(kind="adamw", lr=4.5e-4, betas=(0.9, 0.999), weight_decay=0.01, schedule="constant")
    return _latents("ldm", prior, steps=100 * IMAGENET // 448, batch_size=448, optimizer=optimizer)


def dit_xl() -> PriorRun:
    """DiT-XL/2, 675 M: 400,000 steps of batch 256 at a constant rate."""
    return _latents("dit_xl", DiffusionConfig(network=dit.dit_xl(), process=DDPMConfig()))


def sit_xl() -> PriorRun:
    """SiT-XL/2, 675 M: the same network and training, straight flows."""
    return _latents("sit_xl", DiffusionConfig(network=dit.dit_xl(), process=FlowConfig()))


def epsilon_llamagen_l() -> PriorRun:
    """SEMANTICIST's: LlamaGen-L over 32 concept tokens, a flow for each; 400 epochs of batch 2048, 100 of warm-up."""
    prior = ConceptConfig(network=gpt.epsilon_llamagen_l(), head=FlowHeadConfig())
    steps, warmup = (epochs * IMAGENET // 2048 for epochs in (400, 100))
    optimizer = OptimizerConfig(
        kind="adamw",
        lr=8e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_steps=warmup,
        schedule="constant",
        max_grad_norm=1.0,
    )
    stage = StageConfig(steps=steps, batch_size=2048, optimizer=optimizer)
    return replace(_run("epsilon_llamagen_l", prior, stage), data=_LATENTS, latent_scale=1.0)


def ar_pocket() -> PriorRun:
    """LlamaGen's transformer at three layers of 128."""
    return _pocket("ar_pocket", AutoregressiveConfig(network=_small("llamagen")))


def gpt_pocket() -> PriorRun:
    """VQGAN's transformer at three layers of 128, a tenth of the input codes replaced."""
    return _pocket("gpt_pocket", AutoregressiveConfig(network=_small("mingpt"), pkeep=0.9))


def nar_pocket() -> PriorRun:
    """MaskGIT at three layers of 128."""
    return _pocket("nar_pocket", MaskedConfig(network=replace(_small("mingpt"), causal=False), label_smoothing=0.0))


def grouped_pocket() -> PriorRun:
    """MGVQ's prior at three layers of 128: from the vectors of the codes, a causal head of one layer."""
    network = replace(_small("llamagen"), inputs="vectors")
    return _pocket("grouped_pocket", GroupedConfig(network=network, head=DepthHeadConfig(layers=1)), batch_size=16)


def parallel_pocket() -> PriorRun:
    """The same with independent heads: what the causal head is compared with."""
    network = replace(_small("llamagen"), inputs="vectors")
    head = DepthHeadConfig(structure="parallel")
    return _pocket("parallel_pocket", GroupedConfig(network=network, head=head), batch_size=16)


def video_pocket() -> PriorRun:
    """SGC-VQGAN's video prior at three layers of 128; codes of clips."""
    return _pocket("video_pocket", VideoConfig(network=_small("llamagen"), scored="all"), batch_size=8)


def ldm_pocket() -> PriorRun:
    """The UNet of LDM at 32 channels, normalised in 4 groups: in 32 they would lose the colour of a picture."""
    network = ldm_unet.UNetConfig(
        base_channels=32,
        norm_groups=4,
        multipliers=(1, 2),
        res_blocks=1,
        attention_levels=(1,),
        head_dim=16,
        context_dim=32,
    )
    process = DDPMConfig(betas="sqrt_linear", beta_first=0.0015, beta_last=0.0195, learned_variance=False)
    return _pocket_latents("ldm_pocket", DiffusionConfig(network=network, process=process))


def dit_pocket() -> PriorRun:
    """DiT at four layers of 128 and patches of one cell."""
    network = dit.DiTConfig(layers=4, width=128, heads=4, patch_size=1)
    return _pocket_latents("dit_pocket", DiffusionConfig(network=network, process=DDPMConfig()))


def sit_pocket() -> PriorRun:
    """SiT at four layers of 128 and patches of one cell."""
    network = dit.DiTConfig(layers=4, width=128, heads=4, patch_size=1, learned_sigma=False)
    return _pocket_latents("sit_pocket", DiffusionConfig(network=network, process=FlowConfig()))


def concept_pocket() -> PriorRun:
    """Epsilon-LlamaGen at three layers of 128; the cells of a grid are its tokens, in raster order.

    They are twice the paper's 32, and each trains the head at one time a step, not at four: 2,048 a step, in 7
    minutes of one core, not 18.
    """
    network = replace(_small("llamagen"), positions="learned", inputs="continuous", embedding_dropout=0.0)
    prior = ConceptConfig(network=network, head=FlowHeadConfig(layers=3, width=192), repetitions=1)
    return _pocket_latents("concept_pocket", prior)


def _run(recipe: str, prior: PriorConfig, stage: StageConfig) -> PriorRun:
    return PriorRun(recipe=recipe, data=_CODES, prior=prior, stage=stage, **_LARGE)


def _seq(recipe: str, prior: PriorConfig) -> PriorRun:
    optimizer = OptimizerConfig(
        kind="adamw", lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup_steps=5000, schedule="cosine"
    )
    return _run(recipe, prior, StageConfig(steps=500_000, batch_size=64, optimizer=optimizer))


def _llamagen() -> StageConfig:
    optimizer = OptimizerConfig(
        kind="adamw", lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule="constant", max_grad_norm=1.0
    )
    return StageConfig(steps=300 * IMAGENET // 256, batch_size=256, optimizer=optimizer)


def _latents(
    recipe: str,
    prior: PriorConfig,
    *,
    steps: int = 400_000,
    batch_size: int = 256,
    optimizer: OptimizerConfig | None = None,
) -> PriorRun:
    """On latents as the encoder gives them, evaluated by the running mean of the weights."""
    if optimizer is None:
        optimizer = OptimizerConfig(lr=1e-4, betas=(0.9, 0.999), schedule="constant")
    stage = StageConfig(steps=steps, batch_size=batch_size, ema_decay=0.9999, optimizer=optimizer)
    return replace(_run(recipe, prior, stage), data=_LATENTS, latent_scale=1.0)


def _small(style: Any) -> GPTConfig:
    learned = style == "mingpt"
    return GPTConfig(
        style=style,
        layers=3,
        heads=4,
        width=128,
        positions="learned" if learned else "rotary",
        dropout=0.1,
        embedding_dropout=0.1,
    )


def _pocket(recipe: str, prior: PriorConfig, *, batch_size: int = 32) -> PriorRun:
    """Two cores, minutes."""
    optimizer = OptimizerConfig(
        kind="adamw", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup_steps=50, max_grad_norm=1.0
    )
    stage = StageConfig(steps=600, batch_size=batch_size, optimizer=optimizer)
    return PriorRun(recipe=recipe, data=_CODES, prior=prior, stage=stage, val_samples=64)


def _pocket_latents(recipe: str, prior: PriorConfig) -> PriorRun:
    """The same on latents of unit spread; a running mean of the weights over the last hundreds of steps."""
    run = _pocket(recipe, prior)
    stage = replace(run.stage, steps=1000, ema_decay=0.99)
    return replace(run, data=_LATENTS, stage=stage)
