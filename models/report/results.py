"""What results.json says, in the words and digits of the page.

A value that is missing or not finite shows as a dash and is never the best of its column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

MISSING = "\N{EN DASH}"

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

Results = dict[str, Any]  # results.json, or one of its entries


def percent(value: float) -> str:
    """A share as a percentage, with a decimal where it matters."""
    return f"{100 * value:.1f}%" if 0 < value < 0.0995 else f"{100 * value:.0f}%"


@dataclass(frozen=True)
class Metric:
    """One column: its key in results.json, how it reads, and which end of it is good (None: neither)."""

    key: str
    name: str
    unit: str
    form: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None


METRICS = (
    Metric("bits", "Size", "bits/patch", "{:.4g}".format, None),
    Metric("psnr", "PSNR", "dB", "{:.2f}".format, max),
    Metric("ssim", "SSIM", "up to 1", "{:.3f}".format, max),
    Metric("utilization", "Utilization", "of the codes", percent, max),
    Metric("perplexity", "Perplexity", "codes", "{:,.1f}".format, max),
    Metric("step_ms", "Step", "ms", "{:.1f}".format, min),
    Metric("quantizer_share", "Quantizer", "share of step", percent, min),
)
MORE_METRICS = (
    Metric("psnr_dataset", "PSNR of the mean error", "dB", "{:.2f}".format, max),
    Metric("psnr_luma", "PSNR of luma", "dB", "{:.2f}".format, max),
    Metric("utilization_train", "Utilization", "training photos", percent, max),
    Metric("perplexity_train", "Perplexity", "training photos", "{:,.1f}".format, max),
)


@dataclass(frozen=True)
class Cell:
    """One number, ready to print."""

    key: str
    text: str
    value: str  # the exact value, empty where there is none
    best: bool


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def cells(metric: Metric, values: Sequence[float | None]) -> list[Cell]:
    """A column with its best values marked; values that read the same are equally good."""
    measured = [value for value in values if finite(value)]
    best = metric.form(metric.best(measured)) if metric.best and len(measured) > 1 else None
    texts = [metric.form(value) if finite(value) else MISSING for value in values]
    return [
        Cell(metric.key, text, repr(value) if finite(value) else "", text == best)
        for value, text in zip(values, texts, strict=True)
    ]


def column(key: str, scores: Sequence[Results]) -> list[Cell]:
    """The column of one of METRICS over dicts that hold it."""
    metric = next(metric for metric in METRICS if metric.key == key)
    return cells(metric, [score.get(key) for score in scores])


def score_table(metrics: Sequence[Metric], tokenizers: Sequence[Results]) -> list[tuple[Cell, ...]]:
    """One row of cells per tokenizer."""
    columns = [cells(metric, [entry["metrics"].get(metric.key) for entry in tokenizers]) for metric in metrics]
    return list(zip(*columns, strict=True))


def in_words(count: int) -> str:
    """Small numbers as words."""
    return _WORDS[count] if count < len(_WORDS) else f"{count:,}"


def codes_of(entry: Results) -> str:
    """The size of a codebook in words, for example "4,096 codes"."""
    groups = f"{entry['groups']} \N{MULTIPLICATION SIGN} " if entry["groups"] > 1 else ""
    return f"{groups}{entry['num_codes']:,} codes"


def finding(tokenizers: Sequence[Results]) -> str:
    """The headline: among tokenizers of the most common size, which reconstructs best, with how many codes."""
    scored = [entry for entry in tokenizers if finite(entry["metrics"].get("psnr"))]
    if not scored:
        return "No tokenizer has been scored yet."
    bits, _ = Counter(entry["metrics"]["bits"] for entry in scored).most_common(1)[0]
    peers = [entry for entry in scored if entry["metrics"]["bits"] == bits]
    best = max(peers, key=lambda entry: entry["metrics"]["psnr"])
    decibels = f"{best['metrics']['psnr']:.1f}\N{NO-BREAK SPACE}dB"
    sentence = f"At {bits:.4g} bits per patch, {best['title']} reconstructs unseen photos best: {decibels}"
    used = [entry for entry in peers if finite(entry["metrics"].get("utilization"))]
    if best not in used or len(used) < 2:
        return sentence + "."
    least, *_, most = sorted(used, key=lambda entry: entry["metrics"]["utilization"])
    share = {entry["recipe"]: percent(entry["metrics"]["utilization"]) for entry in used}
    if best is least:
        return f"{sentence}, though it uses the smallest share of its codes, {share[best['recipe']]}."
    sentence += f" with {share[best['recipe']]} of its codes in use"
    if best is most:
        return f"{sentence}, against {share[least['recipe']]} for {least['title']}."
    return f"{sentence}; {most['title']} uses most of them, {share[most['recipe']]}."


def other_sizes(tokenizers: Sequence[Results]) -> str:
    """What the headline leaves out: the tokenizers that spend more or fewer bits, one sentence each."""
    scored = [entry for entry in tokenizers if finite(entry["metrics"].get("psnr"))]
    common = Counter(entry["metrics"]["bits"] for entry in scored).most_common(1)
    return " ".join(
        f"{entry['title']} spends {entry['metrics']['bits']:.4g} bits per patch and reaches "
        f"{entry['metrics']['psnr']:.1f}\N{NO-BREAK SPACE}dB."
        for entry in scored
        if entry["metrics"]["bits"] != common[0][0]
    )
