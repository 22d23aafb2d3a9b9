"""Results as text: the terminal table, its summary, the markdown table of the README."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bench.case import OpCase
from bench.record import CaseRecord, Measurement, Run, seconds

USUAL = "vector-quantize-pytorch"  # what most people run now; the README compares with it by name


def align(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """Columns padded to equal width; those in ``right`` are flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  " + "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(line(row) for row in (header, *rows))


def duration(value: float) -> str:
    scale, unit = next((u for u in ((1.0, "s"), (1e-3, "ms")) if value >= u[0]), (1e-6, "us"))
    return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:.0f} {unit}"


def mebibytes(size: int) -> str:
    value = size / 2**20
    return f"{value:,.0f} MiB" if value >= 10 else f"{value:.1f} MiB"


def times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def sizes(case: CaseRecord | OpCase) -> str:
    """The sizes, each with the true one where it was scaled down."""
    parts = []
    for letter, size in case.sizes.items():
        true = case.true_sizes.get(letter)
        parts.append(f"{letter}={size}" + (f" (of {true})" if true else ""))
    return " ".join(parts)


def case_table(case: CaseRecord) -> str:
    """Everything measured on one case."""
    header = (
        *("", "median", "20-80 %", "Gpair/s", "GFLOP/s", "GB/s", "% peak", "% exp"),
        *("time", "memory", "indices", "setting"),
    )
    rows = [_row(case, m) for m in case.measurements]
    lines = [
        f"{case.name}: {sizes(case)}  ({case.note})",
        align(header, rows, right=range(1, 10)),
        *(f"  {name}: not run, {reason}" for name, reason in case.skipped.items()),
        f"  ceiling {ceilings(case)}; time is relative to ours",
        *_per_iteration(case),
        f"  {verdict_line(case)}",
    ]
    return "\n".join(lines)


def _per_iteration(case: CaseRecord) -> list[str]:
    if "I" not in case.sizes:
        return []
    times = (f"{m.implementation} {iteration(case, m)}" for m in case.measurements if m.timing)
    return [f"  per iteration of {case.sizes['I']}: {', '.join(times)}"]


def iteration(case: CaseRecord, m: Measurement) -> str:
    """Time of one of several iterations."""
    return duration(seconds(m) / case.sizes["I"])


def ceilings(case: CaseRecord) -> str:
    """The measured ceilings of a case."""
    flops = ", ".join(f"{unit} {rate / 1e9:.0f}" for unit, rate in case.ceiling.flops.items())
    exps = f", {case.ceiling.exps / 1e9:.2f} Gexp/s" if case.ceiling.exps else ""
    return f"{flops} GFLOP/s ({case.ceiling.source}){exps}, copy {case.ceiling.bytes / 1e9:.1f} GB/s"


def _row(case: CaseRecord, m: Measurement) -> tuple[str, ...]:
    memory = "-" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.1f} MiB"
    setting = " ".join(f"{key}={value}" for key, value in m.setting.items())
    if m.timing is None or m.rates is None:
        return (m.implementation, *["-"] * 8, memory, str(m.verdict), setting)
    return (
        m.implementation,
        duration(m.timing.median),
        f"{duration(m.timing.q20)} - {duration(m.timing.q80)}",
        *(f"{rate / 1e9:.3g}" for rate in (m.rates.pairs, m.rates.flops, m.rates.bytes)),
        percent(m),
        percent_exps(m),
        times(case.ratio(m)),
        memory,
        str(m.verdict),
        setting,
    )


def percent(m: Measurement) -> str:
    """Share of the ceiling."""
    return f"{100 * m.rates.of_peak:.0f}" if m.rates else "-"


def percent_exps(m: Measurement) -> str:
    """Share of the ceiling of exponentials; beside the other, since both are bound by the same units."""
    return f"{100 * m.rates.of_exps:.0f}" if m.rates and m.rates.of_exps is not None else "-"


def verdict_line(case: CaseRecord) -> str:
    if not case.green:
        red = ", ".join(
            f"{m.implementation} ({m.verdict})" for m in case.measurements if m.ours and not m.verdict.passed
        )
        return f"RED GATE: not exact, and not timed: {red}"
    if case.best_peer is None:
        return no_peer(case)
    return f"{times(case.speedup)} the speed of the best peer, {case.best_peer.implementation}"


def no_peer(case: CaseRecord) -> str:
    """Why there is none to compare with."""
    return "no peer takes part" if all(m.ours for m in case.measurements) else "no peer gave right answers"


def summary(run: Run) -> str:
    """One line per case."""
    header = ("", "ours", "best peer", "speed-up", "% peak", "best peer is", "sizes")
    rows = []
    for case in run.cases:
        peer = case.best_peer
        rows.append(
            (
                case.name,
                duration(seconds(case.ours)) if case.ours.timing else "RED GATE",
                duration(seconds(peer)) if peer else "-",
                times(case.speedup),
                percent(case.ours),
                peer.implementation if peer else no_peer(case),
                sizes(case),
            )
        )
    return align(header, rows, right=range(1, 5))


def conditions(run: Run) -> str:
    """Where and how, in one sentence."""
    stamp = run.environment
    packages = dict(stamp["packages"])
    backends = dict.fromkeys(str(case.ours.setting["backend"]) for case in run.cases)
    detail = " ".join([*backends, *([isa(run)] if isa(run) and "cpu" in backends else [])])
    ours = f"vqkernels {packages.pop('vqkernels')} ({detail})"
    commit = stamp["commit"] + (" with local changes" if stamp["dirty"] else "")
    peers = ", ".join(f"{name} {version}" for name, version in packages.items())
    part = "" if run.complete else "; not a complete run"
    return f"{_machine(stamp)}; {ours} at {commit}; {peers}; {stamp['date'][:10]}; medians of interleaved runs{part}."


def isa(run: Run) -> str:
    """The instruction set that the C++ kernels used."""
    stamp = run.environment
    return str(stamp["build"].get("isa", "") if stamp["isa"] == "auto" else stamp["isa"])


def machine(run: Run) -> str:
    """The processor, with what of it was used."""
    told = _machine(run.environment)
    return f"{told.replace(' for everyone', '')}, {isa(run)}" if run.device == "cpu" else told


def _machine(stamp: dict[str, Any]) -> str:
    device = stamp["device"]
    if device["kind"] == "cpu":
        return f"{stamp['cpu']['model']}, {stamp['threads']} threads for everyone"
    facts = (("driver_version", "driver"), ("clocks.sm", "SM clock at the start"))
    told = [f"{label} {device[fact]}" for fact, label in facts if fact in device]
    return ", ".join([device.get("name", "no GPU: a rehearsal"), *told, f"CUDA {stamp['cuda']}"])


def markdown(run: Run, source: str) -> str:
    """The README table; ``source`` is the path of the JSON it came from."""
    letters = list(dict.fromkeys(letter for case in run.cases for letter in case.sizes))
    usual = any(_named(case, USUAL) for case in run.cases)
    inexact = run.device == "cuda"
    iterated = "I" in letters
    weighed = any(_peaks(case) for case in run.cases)
    peaks = ["% of peak"] + ["% of exp"] * any(case.work.exps for case in run.cases)
    header = ["case", *letters, "vqkernels", *peaks, "best peer", "speed-up"]
    header += ["per iteration, best peer's"] * iterated
    header += [f"vs {USUAL}"] * usual + ["peak memory, that of the best peer"] * weighed
    header += ["fastest inexact peer, wrong codes"] * inexact
    right = {i for i, name in enumerate(header) if name in {*letters, "vqkernels", *peaks, "speed-up", f"vs {USUAL}"}}
    lines = [_line(header), "|" + "|".join("--:" if i in right else "---" for i in range(len(header))) + "|"]
    for case in run.cases:
        peer, rival = case.best_peer, case.best_inexact
        cells = [
            f"{case.name}: {case.note}".replace("|", "\\|"),
            *(f"{case.sizes[letter]:,}" for letter in letters),
            duration(seconds(case.ours)) if case.ours.timing else "not exact",
            *(percent(case.ours), percent_exps(case.ours))[: len(peaks)],
            f"{peer.implementation}, {duration(seconds(peer))}{_misassigned(peer)}" if peer else no_peer(case),
            f"**{times(case.speedup)}**",
        ]
        if iterated:
            told = (m for m in (case.ours, peer) if m is not None and m.timing)
            cells.append(", ".join(iteration(case, m) for m in told))
        if usual:
            named = _named(case, USUAL)
            cells.append(times(case.ratio(named)) if named else "-")
        if weighed:
            cells.append(_peaks(case) or "-")
        if inexact:
            cells.append(
                f"{rival.implementation}, {times(case.ratio(rival))}, {rival.verdict.share:.2%}" if rival else "-"
            )
        lines.append(_line(cells))
    return "\n".join([*lines, "", f"{conditions(run)} Generated from [`{source}`]({source}) by `bench.plot`."])


def _misassigned(peer: Measurement) -> str:
    """What a peer that guesses got wrong, or the empty string."""
    share = peer.verdict.misassigned
    return "" if share is None else f" ({share:.3%} misassigned)"


def _peaks(case: CaseRecord) -> str:
    """What ours and the best peer need beyond their inputs, or the empty string."""
    peaks = [m.peak_bytes for m in (case.ours, case.best_peer) if m is not None]
    told = [mebibytes(peak) for peak in peaks if peak is not None]
    return ", ".join(told) if len(told) == 2 else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _named(case: CaseRecord, name: str) -> Measurement | None:
    return next((m for m in case.measurements if m.implementation == name), None)
