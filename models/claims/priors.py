"""Claims about priors: how codes are predicted, and how fast they are drawn."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from models.claims.claim import Chart, Check, Claim, Codes, Line, Made, Metric, Prior, Train, Trial, Variant
from models.claims.lc_utilization import lc
from models.claims.measures import Apart, changed_share, code_array, decoded, likelihood, mean_psnr
from models.claims.mgvq import masked
from models.claims.seqgan import entropic
from models.claims.sgc import cvq, sgc
from models.claims.small import CLIPS, STEPS, codes, prior
from models.data.pixels import to_tensor
from models.data.source import open_source
from models.priors.draw import sample, sampling_config
from models.priors.sample_random import SampleRandom
from models.priors.teacher import top_predictions
from models.priors.video import VideoConfig
from models.training.prior_data import unscaled_latents
from models.training.runs import load_codec, load_prior, load_prior_config

_SAMPLES = 128  # drawn for a distance
_REAL = 512  # decoded training crops that they are compared with
_AT_ONCE = 64


def _drawn(made: Made, count: int, **options: Any) -> torch.Tensor:
    """Codes or latents of samples 0 to ``count``."""
    network = load_prior(made.run)
    sampling, parts = sampling_config(network, **options), []
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, count))
        parts.append(sample(network, sampling, SampleRandom(made.seed, numbers)))
    return torch.cat(parts)


# kv-cache

_REPEATS = 5


def with_and_without_cache(made: Made) -> dict[str, float]:
    """The same samples with a cache and without, in turn; the ratio of the medians of their times."""
    network = load_prior(made.run)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, torch.Tensor] = {}
    for repeat in range(_REPEATS + 1):
        for cache in (True, False):
            random, started = SampleRandom(made.seed, range(16)), time.perf_counter()
            found[cache] = sample(network, sampling_config(network), random, cache=cache)
            if repeat:  # the first one warms up
                seconds[cache].append(time.perf_counter() - started)
    return {
        "ratio": median(seconds[False]) / median(seconds[True]),
        "changed": changed_share([found[True]], [found[False]]),
    }


def _ar() -> Prior:
    return prior("ar_pocket", codes(entropic(0.01, alpha=0.4)))


KV_CACHE = Claim(
    name="kv-cache",
    title="A key-value cache draws the same codes, faster",
    system="SGC-VQGAN",
    place="inference of the video prior",
    says="Keeping keys and values of earlier positions changes nothing in what is drawn and spares most of the work.",
    pocket=Trial(
        form="16 samples of 64 codes by an autoregressive prior of two layers of 96, with and without in turn, "
        "medians of five; at this size much of the time is not arithmetic, so the ratio is a lower end.",
        variants=(Variant(name="autoregressive", run=_ar()),),
        measure=with_and_without_cache,
        metrics=(
            Metric(key="ratio", title="times faster", digits=1),
            Metric(key="changed", title="codes changed", unit="%"),
        ),
        checks=(
            Check(says="no code changes, per cent of codes", high=0.0, low=("autoregressive", "changed"), margin=0.0),
            Check(says="times faster, above 1.3", high=("autoregressive", "ratio"), low=1.3, margin=0.0),
        ),
        chart=Chart(y="ratio"),
        minutes=1,
    ),
)

# nar-steps

_STEPS = (1, 2, 4, 8, 12, 64)


def steps_to_quality(made: Made) -> dict[str, float]:
    """Distance of samples to decoded training crops, by the number of forward passes."""
    codec = load_codec(made.tokenizer)
    assert made.codes is not None
    apart = Apart(decoded(codec, code_array(made.codes, "train", _REAL)))
    return {f"fd_{steps}": apart(decoded(codec, _drawn(made, _SAMPLES, steps=steps))) for steps in _STEPS}


NAR_STEPS = Claim(
    name="nar-steps",
    title="A dozen parallel steps are enough",
    system="SeQ-GAN",
    place="NAR transformer, 12 steps",
    says="A masked prior that keeps its most confident codes draws in about twelve passes what an autoregressive one "
    "needs a pass per code for; in a single pass the codes do not fit together.",
    published="FID on ImageNet with the same tokenizer: 4.99 in 12 passes, 7.55 autoregressive",
    pocket=Trial(
        form="MaskGIT of two layers of 96 on 64 codes of photographs; Frechet distance of EfficientNet's embeddings "
        "between 128 samples and 512 decoded training crops (not FID).",
        variants=(Variant(name="masked", run=prior("nar_pocket", codes(entropic(0.01, alpha=0.4)))),),
        measure=steps_to_quality,
        metrics=tuple(Metric(key=f"fd_{steps}", title=f"FD, {steps} steps", digits=1) for steps in _STEPS),
        checks=(
            Check(says="distance: 1 step above 12", high=("masked", "fd_1"), low=("masked", "fd_12"), margin=5.0),
            Check(
                says="distance: 64 steps against 12, 5 allowed",
                high=("masked", "fd_64"),
                low=("masked", "fd_12"),
                margin=-5.0,
            ),
        ),
        chart=Chart(
            x="forward passes",
            y="FD (EfficientNet)",
            log=True,
            lines=(Line(name="masked", points=tuple((steps, "masked", f"fd_{steps}") for steps in _STEPS)),),
        ),
        minutes=3,
        remark="The second margin was written before the distances were known, which are in the hundreds: twelve "
        "passes bring nearly all that 64 bring, beside one pass, but not to within 5.",
    ),
)

# depth-head

_GROUPED = codes(masked(STEPS))

DEPTH_HEAD = Claim(
    name="depth-head",
    title="Groups of a position are not independent",
    system="MGVQ",
    place="depth head of the prior",
    says="The indices of a position are predicted one after the other by a causal head, because nested groups depend "
    "on each other; independent heads know less.",
    pocket=Trial(
        form="Priors of two layers of 96 on four nested groups of 256 codes, one with a causal head of one layer, "
        "one with four independent layers. Nats per index of held-out crops. The paper does not print the "
        "comparison.",
        variants=(
            Variant(name="depth head", run=prior("grouped_pocket", _GROUPED)),
            Variant(name="independent heads", run=prior("parallel_pocket", _GROUPED)),
        ),
        measure=likelihood,
        metrics=(
            Metric(key="nll", title="nats per index", digits=3),
            Metric(key="unigram_ratio", title="over counting", digits=3),
        ),
        checks=(
            Check(
                says="loss: independent heads above depth head, nats",
                high=("independent heads", "nll"),
                low=("depth head", "nll"),
                margin=0.02,
            ),
        ),
        chart=Chart(y="nll"),
        minutes=2,
    ),
)

# latent-diffusion


@torch.no_grad()
def latents_to_images(made: Made) -> dict[str, float]:
    """Distances of drawn latents, decoded through the quantizer and past it, over that of noise of the same "
    "spread."""
    codec, config = load_codec(made.tokenizer), load_prior_config(made.run)
    assert made.codes is not None
    real = code_array(made.codes, "train", _REAL, "latents")  # [N, D, h, w]
    noise = torch.randn(_SAMPLES, *real.shape[1:], generator=torch.Generator().manual_seed(made.seed))
    axes = (0, 2, 3)
    noise = noise * real.std(axes, keepdim=True) + real.mean(axes, keepdim=True)
    options = {"method": "ddim", "steps": 25} if load_prior(made.run).config.process.kind == "ddpm" else {"steps": 25}
    drawn = unscaled_latents(config, _drawn(made, _SAMPLES, **options))

    def past(latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([codec.tokenizer.decoder(part) for part in latents.split(_AT_ONCE)])

    def through(latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([codec.images_of_latents(part) for part in latents.split(_AT_ONCE)])

    apart = Apart(through(real))
    base, quantized, unquantized = (apart(images) for images in (through(noise), through(drawn), past(drawn)))
    return {
        "fd": quantized,
        "fd_unquantized": unquantized,
        "fd_noise": base,
        "gain": 100 * (1 - quantized / base),
        "gain_unquantized": 100 * (1 - unquantized / base),
    }


_DENOISING = 1000  # steps
_KINDS = (("LDM", "ldm_pocket"), ("DiT", "dit_pocket"), ("SiT", "sit_pocket"))

LATENT_DIFFUSION = Claim(
    name="latent-diffusion",
    title="Diffusion draws latents that a large frozen codebook decodes",
    system="VQGAN-LC",
    place="generation tables",
    says="LDM, DiT and SiT all work on the encoder's latents; what they draw goes through the quantizer, then the "
    "decoder.",
    published="FID on ImageNet with FC / EMA / LC: LDM 9.78 / 9.13 / 8.36, DiT 13.7 / 13.4 / 10.8, SiT 10.3 / 9.31 / "
    "8.40",
    pocket=Trial(
        form="Latents of the LC tokenizer with 1024 codes; 128 samples against 512 training crops decoded alike, "
        "Frechet distance of EfficientNet's embeddings, as the share by which it falls below that of independent "
        "noise with the latents' mean and spread; 1000 steps. That the paths work is asked for; quality is not.",
        variants=tuple(
            Variant(
                name=name,
                run=prior(recipe, replace(codes(lc(1024).config), kind="latents"), steps=_DENOISING),  # type: ignore[arg-type]
            )
            for name, recipe in _KINDS
        ),
        measure=latents_to_images,
        metrics=(
            Metric(key="gain", title="below noise, quantized", unit="%", digits=1),
            Metric(key="gain_unquantized", title="below noise, not quantized", unit="%", digits=1),
            Metric(key="fd", title="FD", digits=1),
            Metric(key="fd_noise", title="FD of noise", digits=1),
        ),
        checks=tuple(
            Check(says=f"{name}: distance below that of noise, per cent", high=(name, key), low=0.0, margin=10.0)
            for name, _ in _KINDS
            for key in ("gain", "gain_unquantized")
        ),
        chart=Chart(y="gain"),
        minutes=8,
        remark="With the 200 steps of other claims most of these were no better than noise.",
    ),
)

# sgc-video


def next_frame(made: Made) -> dict[str, float]:
    """Loss of the next frame; codes guessed right, against copying the last frame; PSNR of the guess as a picture."""
    network, codec = load_prior(made.run), load_codec(made.tokenizer)
    assert made.codes is not None
    clips = code_array(made.codes, "val", _REAL)  # [N, T, h, w]
    truth, last = clips[:, -1], clips[:, -2]
    told = top_predictions(network, clips)[:, -1]  # type: ignore[arg-type]
    source = open_source(made.data, "val")
    frames = [source.read(index) for index in range(len(clips))]
    pictures = torch.stack([to_tensor(frame.image[-1])[0] for frame in frames if frame is not None])  # [N, 3, S, S]
    drawn = sample(
        network,
        sampling_config(network, temperature=0.0),
        SampleRandom(made.seed, range(len(clips))),
        context=clips[:, :-1],
    )[:, -1]
    found = likelihood(made)
    return found | {
        "right": 100 - changed_share([told], [truth]),
        "right_copied": 100 - changed_share([last], [truth]),
        "gain": changed_share([last], [truth]) - changed_share([told], [truth]),
        "psnr_drawn": mean_psnr(pictures, decoded(codec, drawn)),
        "psnr_copied": mean_psnr(pictures, decoded(codec, last)),
        "psnr_best": mean_psnr(pictures, decoded(codec, truth)),
    }


def _next_frames(tokenizer: Train) -> Prior:
    """The video prior on clips of four frames, which learns the last one alone."""
    made = prior("video_pocket", Codes(tokenizer=tokenizer, data=CLIPS), conditional=False)
    video = made.config.prior
    assert isinstance(video, VideoConfig)
    return replace(made, config=replace(made.config, prior=replace(video, scored="next")))


SGC_VIDEO = Claim(
    name="sgc-video",
    title="Codes that mean something move predictably",
    system="SGC-VQGAN",
    place="Table 2, FVD",
    says="Frames coded by classes are easier to continue: the next frame's codes are predicted better than those of "
    "CVQ-VAE.",
    published="FVD on driving scenes: VQGAN 1431, CVQ-VAE 1373, SGC 826",
    pocket=Trial(
        form="Clips of four frames of street scenes at 32 pixels, a prior of two layers of 96 that learns the fourth "
        "frame; tokenizers of semantic-uniqueness. The loss is read relative to that of counting codes; codes "
        "guessed right are compared with those that copying the third frame gets right. No FVD.",
        variants=(Variant(name="CVQ", run=_next_frames(cvq())), Variant(name="SGC", run=_next_frames(sgc()))),
        measure=next_frame,
        metrics=(
            Metric(key="unigram_ratio", title="prior / counting", digits=3),
            Metric(key="nll", title="prior, nats", digits=3),
            Metric(key="right", title="guessed right", unit="%", digits=1),
            Metric(key="right_copied", title="copying", unit="%", digits=1),
            Metric(key="psnr_drawn", title="PSNR drawn", unit="dB"),
            Metric(key="psnr_copied", title="PSNR copied", unit="dB"),
            Metric(key="psnr_best", title="PSNR true codes", unit="dB"),
        ),
        checks=(
            Check(
                says="loss relative to counting: CVQ above SGC",
                high=("CVQ", "unigram_ratio"),
                low=("SGC", "unigram_ratio"),
                margin=0.01,
            ),
            Check(says="SGC: codes guessed right above copying, points", high=("SGC", "gain"), low=0.0, margin=1.0),
        ),
        chart=Chart(y="unigram_ratio"),
        minutes=4,
        remark="Most tokens of a scene stay what they are from frame to frame, and 200 steps do not teach the "
        "prior even that: copying gets more of them right. The loss points the paper's way, by more or "
        "less with every recording. With 600 steps (SGC, one seed) the loss falls to 0.30 of counting and the "
        "prior gets 79 % right, copying 83 %: more steps go the right way, and would take more than this claim's "
        "minutes.",
    ),
)
