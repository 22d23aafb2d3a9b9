"""Results as text: the terminal table, its summary, the markdown table of the README."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
    header = ("", "median", "20-80 %", "Gpair/s", "GFLOP/s", "% peak", "time", "memory", "indices", "setting")
    rows = [_row(case, m) for m in case.measurements]
    lines = [
        f"{case.name}: {sizes(case)}  ({case.note})",
        align(header, rows, right=range(1, 8)),
        *(f"  {name}: not run, {reason}" for name, reason in case.skipped.items()),
        f"  ceiling {case.ceiling.flops / 1e9:.0f} GFLOP/s ({case.ceiling.flops_source}), "
        f"copy {case.ceiling.bytes / 1e9:.1f} GB/s; time is relative to ours",
        f"  {verdict_line(case)}",
    ]
    return "\n".join(lines)


def _row(case: CaseRecord, m: Measurement) -> tuple[str, ...]:
    memory = "-" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.1f} MiB"
    setting = " ".join(f"{key}={value}" for key, value in m.setting.items())
    if m.timing is None:
        return (m.implementation, *["-"] * 6, memory, str(m.verdict), setting)
    return (
        m.implementation,
        duration(m.timing.median),
        f"{duration(m.timing.q20)} - {duration(m.timing.q80)}",
        f"{case.work.pairs / seconds(m) / 1e9:.3g}",
        f"{case.work.flops / seconds(m) / 1e9:.3g}",
        f"{100 * case.efficiency(m):.0f}",
        times(case.ratio(m)),
        memory,
        str(m.verdict),
        setting,
    )


def verdict_line(case: CaseRecord) -> str:
    if not case.ours.verdict.passed:
        return f"RED GATE: {case.ours.implementation} is not exact ({case.ours.verdict}); it was not timed"
    if case.best_peer is None:
        return "no peer gave right answers"
    return f"{times(case.speedup)} the speed of the best peer, {case.best_peer.implementation}"


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
                f"{100 * case.efficiency(case.ours):.0f}" if case.ours.timing else "-",
                peer.implementation if peer else "none was right",
                sizes(case),
            )
        )
    return align(header, rows, right=range(1, 5))


def conditions(run: Run) -> str:
    """Where and how, in one sentence."""
    stamp = run.environment
    packages = dict(stamp["packages"])
    isa = stamp["build"].get("isa", "") if stamp["isa"] == "auto" else stamp["isa"]
    ours = f"vqkernels {packages.pop('vqkernels')} ({' '.join(filter(None, (stamp['backend'], isa)))})"
    commit = stamp["commit"] + (" with local changes" if stamp["dirty"] else "")
    peers = ", ".join(f"{name} {version}" for name, version in packages.items())
    part = "" if run.complete else "; not a complete run"
    return (
        f"{stamp['cpu']['model']}, {stamp['threads']} threads for everyone; {ours} at {commit}; {peers}; "
        f"{stamp['date'][:10]}; medians of interleaved runs{part}."
    )


def markdown(run: Run, source: str) -> str:
    """The README table; ``source`` is the path of the JSON it came from."""
    lines = [
        f"| case | N | K | D | G | vqkernels | % of peak | best peer | speed-up | vs {USUAL} |",
        "|---|--:|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for case in run.cases:
        peer = case.best_peer
        usual = next((m for m in case.measurements if m.implementation == USUAL), None)
        cells = [
            f"{case.name}: {case.note}".replace("|", "\\|"),
            *(f"{case.sizes[letter]:,}" for letter in "NKDG"),
            duration(seconds(case.ours)) if case.ours.timing else "not exact",
            f"{100 * case.efficiency(case.ours):.0f}" if case.ours.timing else "-",
            f"{peer.implementation}, {duration(seconds(peer))}" if peer else "none was right",
            f"**{times(case.speedup)}**",
            times(case.ratio(usual)) if usual else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{conditions(run)} Generated from [`{source}`]({source}) by `bench.plot`."])
