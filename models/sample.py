"""Images and videos from a trained prior: ``python -m models.sample PRIOR_RUN TOKENIZER_RUN --out FOLDER``.

Leaves ``images/000000.png`` and so on, ``grid.png``, and ``samples.npz`` as ADM's evaluation reads it; a video prior
leaves ``videos/000000.gif`` or ``.mp4``. Each sample is a function of (seed, its number): several processes
(``torchrun``) and runs that were interrupted draw the same ones, and so do batches of another size, as far as the
last bits of products of another shape decide nothing. ``--no-cache`` computes everything again for every code, to
compare speeds. N samples, T frames, H W pixels.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from accelerate import PartialState
from PIL import Image

from models import command
from models.data.pixels import to_image
from models.errors import UserError, read_object
from models.priors.draw import AnyPrior, AnySampling, sample, sampling_config
from models.priors.sample_random import SampleRandom
from models.tokenizers.codec import Codec
from models.training.prior_data import check_tokenizer, open_codes, unscaled_latents
from models.training.prior_run import PriorRun
from models.training.runs import load_codec, load_prior, load_prior_config

_GRID = 64  # images in grid.png


class Sampler:
    """A prior and the tokenizer whose codes it knows."""

    def __init__(
        self,
        config: PriorRun,
        prior: AnyPrior,
        codec: Codec,
        sampling: AnySampling,
        *,
        seed: int = 0,
        classes: Sequence[int] | None = None,
        grid: tuple[int, int] | None = None,
        new_frames: int = 8,
        context: str | None = None,
        cache: bool = True,
    ) -> None:
        self.config, self.prior, self.codec, self.sampling = config, prior, codec, sampling
        self.seed, self.grid, self.new_frames, self.cache = seed, grid, new_frames, cache
        self.device = next(prior.parameters()).device
        count = config.shape.num_classes
        if classes is not None and not count:
            raise UserError(f"classes: expected none from an unconditional prior, got {list(classes)}")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed: expected a number from 0 to 2**63 - 1, got {seed}")
        if grid is not None and min(grid) < 1:
            raise UserError(f"grid: expected at least 1 row and column, got {grid}")
        for label in classes or ():
            if not 0 <= label < count:
                raise UserError(f"classes: expected classes from 0 to {count - 1}, got {label}")
        self._classes = list(range(count)) if classes is None else list(classes)
        self.frames = config.prior.kind == "video"
        self._context = open_codes(context or config.data, "val") if self.frames else None
        shape = config.shape
        cells = shape.cells if grid is None else grid[0] * grid[1]
        self.tokens = cells * shape.groups * (new_frames if self.frames else 1)

    def label(self, number: int) -> int | None:
        """The class of a sample: those asked for, in turn."""
        return self._classes[number % len(self._classes)] if self._classes else None

    def codes(self, numbers: Sequence[int]) -> torch.Tensor:
        """Codes or latents of samples."""
        labels = None
        if self._classes:
            labels = torch.tensor([self.label(number) for number in numbers], device=self.device)
        return sample(
            self.prior,
            self.sampling,
            SampleRandom(self.seed, numbers, self.device),
            labels,
            grid=self.grid,
            context=self._frames_before(numbers),
            new_frames=self.new_frames,
            cache=self.cache,
        )

    @torch.no_grad()
    def pixels(
        self, values: torch.Tensor, numbers: Sequence[int]
    ) -> torch.Tensor:  # [N, 3, H, W], of video [N, T, 3, H, W]
        """Images of codes; latents go through quantizer and decoder, as VQGAN-LC has it."""
        if self.config.of_latents:
            latents = unscaled_latents(self.config, values)
            if latents.ndim != 4:
                raise UserError(f"latents: expected a grid [N, D, h, w] to decode, got {tuple(latents.shape)}")
            return self.codec.images_of_latents(latents, seed=self.seed, numbers=numbers)
        if self.frames:
            return self.codec.images(values.flatten(0, 1)).unflatten(0, values.shape[:2])
        return self.codec.images(values, seed=self.seed, numbers=numbers)

    def _frames_before(self, numbers: Sequence[int]) -> torch.Tensor | None:  # [N, T - 1, h, w]
        if self._context is None:
            return None
        known = self.config.shape.frames - 1
        clips = [self._context.read(number % len(self._context)).image[0][:known] for number in numbers]
        return torch.from_numpy(np.stack(clips).astype(np.int64)).to(self.device)


def draw_samples(
    sampler: Sampler,
    out: Path,
    count: int,
    *,
    batch_size: int = 64,
    video: Literal["gif", "mp4"] = "gif",
    fps: int = 8,
    progress: bool = True,
) -> dict[str, float]:
    """Make the files that are missing of ``count`` samples; returns samples and tokens per second of this process."""
    _check_at_least_1(count=count, batch_size=batch_size, fps=fps)
    state = PartialState(cpu=not torch.accelerator.is_available())
    folder = out / ("videos" if sampler.frames else "images")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.{video if sampler.frames else 'png'}" for number in range(count)]
    starts = range(0, count, batch_size)[state.process_index :: state.num_processes]
    started, done, drawing = time.perf_counter(), 0, 0.0
    for start in starts:
        numbers = range(start, min(start + batch_size, count))
        # a batch is drawn whole or not at all, so that what was interrupted ends with the same bits
        if all(paths[number].exists() for number in numbers):
            continue
        before = time.perf_counter()
        values = sampler.codes(numbers)
        drawing += time.perf_counter() - before
        for number, picture in zip(numbers, sampler.pixels(values, numbers), strict=True):
            _save(paths[number], picture, fps)
        done += len(numbers)
        if progress:
            rate, tokens = done / (time.perf_counter() - started), done * sampler.tokens / drawing
            print(
                f"{numbers[-1] + 1}/{count} samples, {rate:.1f} samples/s, {tokens:.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.perf_counter() - started
    state.wait_for_everyone()
    if state.is_main_process and not sampler.frames:
        _save_together(out, paths, [sampler.label(number) for number in range(count)])
    state.wait_for_everyone()
    return {
        "samples": done,
        "samples_per_second": done / seconds,
        "tokens_per_second": done * sampler.tokens / drawing if drawing else 0.0,
    }


def _save(path: Path, picture: torch.Tensor, fps: int) -> None:  # [3, H, W] or [T, 3, H, W]
    """Write an image or a video, whole or not at all."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    if picture.ndim == 3:
        Image.fromarray(to_image(picture)).save(partial)
    elif path.suffix == ".gif":
        frames = [Image.fromarray(to_image(frame)) for frame in picture]
        frames[0].save(partial, save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0)
    else:
        _save_mp4(partial, [to_image(frame) for frame in picture], fps)
    partial.replace(path)


def _save_mp4(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:  # each [H, W, 3]
    try:
        import av
    except ImportError as error:
        raise UserError("video: package av is not installed; pip install av, or use --video gif") from error
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _save_together(out: Path, paths: Sequence[Path], labels: Sequence[int | None]) -> None:
    """All images in one array, and the first ones in one picture."""
    images = np.stack([np.asarray(Image.open(path)) for path in paths])  # [N, H, W, 3]
    arrays = {"arr_0": images}
    if labels[0] is not None:
        arrays["arr_1"] = np.array(labels, np.int64)
    partial = out / ".samples.partial.npz"
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(out / "samples.npz")
    Image.fromarray(picture_grid(images[:_GRID])).save(out / "grid.png")


def picture_grid(images: np.ndarray) -> np.ndarray:  # [N, H, W, 3] -> [rows * H, columns * W, 3]
    """Images in rows, as near to a square as can be; what is left over is black."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    whole = np.zeros((rows * columns, height, width, 3), np.uint8)
    whole[: len(images)] = images
    return whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _check_at_least_1(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")


def _check_same(out: Path, asked: dict[str, Any]) -> None:
    """Samples of one folder are drawn in one way."""
    path = out / "sample.json"
    asked = json.loads(json.dumps(asked))
    if path.exists():
        held = read_object(path, "what samples were drawn with")
        differing = [
            f"{name} {held.get(name)!r} / {value!r}" for name, value in asked.items() if held.get(name) != value
        ]
        if differing:
            raise UserError(
                f"{out}: holds samples drawn in another way ({', '.join(differing)}); choose another --out"
            )
        return
    partial = out / ".sample.json.partial"
    partial.write_text(json.dumps(asked, indent=1) + "\n")
    partial.replace(path)


def main(
    prior_run: Annotated[Path, tyro.conf.Positional],
    tokenizer_run: Annotated[Path, tyro.conf.Positional],
    out: Path,
    count: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    classes: tuple[int, ...] | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: int | None = None,
    schedule: Literal["cosine", "arccos"] | None = None,
    choice_temperature: float | None = None,
    logit_temperature: float | None = None,
    guidance_growth: Literal["constant", "linear"] | None = None,
    method: Literal["ancestral", "ddim", "euler", "heun", "sde"] | None = None,
    eta: float | None = None,
    cfg_channels: int | None = None,
    grid: tuple[int, int] | None = None,
    new_frames: int = 8,
    context: str | None = None,
    video: Literal["gif", "mp4"] = "gif",
    fps: int = 8,
    cache: bool = True,
) -> None:
    """Draw samples of a prior and decode them. An option that is None takes the default of the prior's kind.

    Args:
        prior_run: folder of the run of a prior.
        tokenizer_run: folder of the run of the tokenizer whose codes it was trained on.
        out: folder for images or videos; what is there already is kept.
        count: samples.
        batch_size: samples at a time.
        seed: of all samples.
        classes: numbers of the classes to draw, in turn; all of them by default.
        guidance: classifier-free guidance s, u + s(c - u); 1 is none.
        temperature: divides logits, 0 takes the most probable code; of "sde", a factor on the noise.
        top_k: codes to choose among, by autoregressive priors.
        top_p: probability of the codes to choose among.
        steps: forward passes of a masked prior (12), or steps from noise to latents.
        schedule: of the share that a masked prior still hides.
        choice_temperature: noise on which codes a masked prior keeps.
        logit_temperature: divides the logits of a masked prior.
        guidance_growth: of a masked prior's guidance over its steps.
        method: from noise to latents; "ancestral" or "ddim" of DDPM, the others of flows.
        eta: noise of "ddim".
        cfg_channels: guide this many first channels of latents.
        grid: rows and columns of codes, larger than those the prior was trained on: through a sliding window.
        new_frames: frames that a video prior adds.
        context: codes of clips that a video prior goes on from; the held-out ones of its training by default.
        video: format of videos.
        fps: frames per second of videos.
        cache: keep keys and values of earlier positions; --no-cache computes them again, to the same codes.
    """
    _check_at_least_1(count=count, batch_size=batch_size, fps=fps, new_frames=new_frames)
    config = load_prior_config(prior_run)
    assert config.codes is not None
    check_tokenizer(tokenizer_run, config.codes, prior_run)
    state = PartialState(cpu=not torch.accelerator.is_available())
    prior, codec = load_prior(prior_run).to(state.device), load_codec(tokenizer_run)
    codec.tokenizer.to(state.device)
    sampling = sampling_config(
        prior,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        steps=steps,
        schedule=schedule,
        choice_temperature=choice_temperature,
        logit_temperature=logit_temperature,
        guidance_growth=guidance_growth,
        method=method,
        eta=eta,
        cfg_channels=cfg_channels,
    )
    sampler = Sampler(
        config,
        prior,
        codec,
        sampling,
        seed=seed,
        classes=classes,
        grid=grid,
        new_frames=new_frames,
        context=context,
        cache=cache,
    )
    out.mkdir(parents=True, exist_ok=True)
    asked = {
        "prior": str(prior_run),
        "tokenizer": config.codes.tokenizer,
        "sampling": repr(sampling),
        "seed": seed,
        "classes": classes,
        "grid": grid,
        "new_frames": new_frames,
        "context": context,
    }
    _check_same(out, asked)
    done = draw_samples(sampler, out, count, batch_size=batch_size, video=video, fps=fps)
    state.print(
        f"{out}: drew {done['samples']:.0f} samples, {done['samples_per_second']:.2f} samples/s, "
        f"{done['tokens_per_second']:.0f} tokens/s {'with' if cache else 'without'} cache"
    )


if __name__ == "__main__":
    sys.exit(command.run(lambda: tyro.cli(main)))
