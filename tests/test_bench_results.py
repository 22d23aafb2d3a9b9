"""What becomes of results: figures, files, tables and charts, comparisons. Nothing here asserts a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import made_run

from bench import compare, plot, readme, record
from bench.case import Work
from bench.machine import slug
from bench.ours import OURS
from bench.timing import Timing

newest = functools.cache(readme.newest)


def test_derived_figures() -> None:
    first, second = made_run().cases
    assert first.best_peer is not None
    assert (first.best_peer.implementation, first.speedup) == ("torch", 2.0)  # the cheat is faster and does not count
    assert second.speedup == 4.0
    # 1600 operations at 3.2e5 per second are 5 ms, half of ours
    assert first.ours.rates is not None
    assert math.isclose(first.ours.rates.of_peak, 0.5)
    assert math.isclose(first.ours.rates.pairs, 2e4)
    # the same time in half precision, whose ceiling is ten times higher; without arithmetic the traffic binds
    timing = first.ours.timing
    assert record.rates(first.work, first.ceiling, "fp16", None) is None
    half, copied = (record.rates(w, first.ceiling, "fp16", timing) for w in (first.work, Work(0, 0, 5_000_000)))
    assert half is not None
    assert copied is not None
    assert math.isclose(half.of_peak, 0.05)
    assert math.isclose(copied.of_peak, 0.5)
    # 40 exponentials at 8000 per second are 5 ms; of none, or without a ceiling, there is no share
    work, ceiling = (dataclasses.replace(a, exps=b) for a, b in ((first.work, 40), (first.ceiling, 8e3)))
    assert first.ours.rates.of_exps is None
    busy, unknown = (record.rates(work, c, "fp32", timing) for c in (ceiling, first.ceiling))
    assert busy is not None
    assert busy.of_exps is not None
    assert math.isclose(busy.of_exps, 0.5)
    assert unknown is not None
    assert unknown.of_exps is None
    assert made_run().file_name() == "example-7-2c_2020-01-02_abc.json"
    stamp = {"device": {"kind": "cpu"}, "cpu": {"model": "AMD EPYC 9B14 64-Core Processor", "cores": 4}}
    assert slug(stamp) == "amd-epyc-9b14-64-core-4c"
    assert slug({**stamp, "device": {"kind": "cuda", "name": "NVIDIA H200"}}) == "nvidia-h200"


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    record.save(made_run(), path)
    assert record.load(path) == made_run()
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(schema=0), f"schema {record.SCHEMA}, got 0"),
        (lambda data: data.pop("cases"), "expected the fields"),
        (lambda data: data["cases"][1].update(name=7), r"cases\[1\].name: expected .*str.*, got 7"),
        (lambda data: data["cases"][0]["measurements"][0]["timing"].pop("q20"), "timing: expected the fields"),
    ],
)
def test_a_damaged_result_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "result.json"
    record.save(made_run(), path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        record.load(path)


def test_plot_and_readme_come_from_the_file(tmp_path: Path) -> None:
    result, page, charts = tmp_path / "r.json", tmp_path / "README.md", tmp_path / "assets"
    record.save(made_run(), result)
    page.write_text("before\n<!-- bench:nearest_code:begin -->\nold\n<!-- bench:nearest_code:end -->\nafter\n")
    arguments = [str(result), "--out", str(charts), "--readme", str(page)]
    assert plot.main(arguments) == 0
    text = page.read_text()
    named = "**Example(R) CPU 7 @ 2.00GHz, 2 threads, avx512**"
    assert text.startswith(f"before\n<!-- bench:nearest_code:begin -->\n{named}\n\n| case |")
    assert text.endswith("<!-- bench:nearest_code:end -->\nafter\n")
    assert "old" not in text
    assert "**2.00x**" in text
    assert "[`r.json`](r.json)" in text
    assert "[chart](assets/bench_nearest_code_example-7-2c-avx512.svg)" in text
    svg, png = (charts / f"bench_nearest_code_example-7-2c-avx512.{kind}" for kind in ("svg", "png"))
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert all(word in svg.read_text() for word in ("first", "second", "faiss", "4.00x", "0.10x"))
    # drawn again, the same bytes: the repository does not change without a new result
    before = svg.read_bytes(), png.read_bytes(), text
    assert plot.main(arguments) == 0
    assert (svg.read_bytes(), png.read_bytes(), page.read_text()) == before


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:nearest_code:end --> <!-- bench:nearest_code:begin -->")
    with pytest.raises(ValueError, match="once each"):
        readme.write_between_markers(page, "bench:nearest_code", "table")
    page.write_text("nothing")
    record.save(made_run(), result := tmp_path / "r.json")
    with pytest.raises(ValueError, match="expected <!-- bench:nearest_code:begin --> in one of them"):
        readme.write([page], [result])


def test_compare_names_ratios_and_differences() -> None:
    old, new = made_run(), made_run()
    new.environment = {**new.environment, "threads": 4, "commit": "def"}
    new.cases[1].sizes["N"] = 11
    ours = new.cases[0].measurements[0]
    ours.timing = Timing(0.005, 0.004, 0.006, 7)
    new.cases[0].measurements.pop(1)
    text = compare.compare(old, new)
    lines = [line.split() for line in text.splitlines()]
    assert "environment: threads 2 -> 4" in text
    assert "commit" not in text  # that is what one compares
    assert ["first", "vqkernels", "10", "ms", "5", "ms", "0.500", "faster"] in lines
    assert ["first", "torch", "20", "ms", "20", "ms", "1.000", "same"] in lines
    assert ["first", "faiss", "40", "ms", "missing", "-"] in lines
    assert "vqkernels: 1 faster, 0 same, 0 slower" in text
    assert "second N=10 K=20 D=4 G=1: only in OLD" in text
    with pytest.raises(ValueError, match="NEW"):
        compare.compare(old, made_run(op="code_stats"))


def _sped_up(result: record.Run, name: str, factor: float) -> record.Run:
    for measurement in (m for case in result.cases for m in case.measurements if m.implementation == name):
        if (t := measurement.timing) is not None:
            measurement.timing = Timing(factor * t.median, factor * t.q20, factor * t.q80, t.samples)
    return result


@pytest.mark.parametrize(
    ("ours", "peers", "verdict"),
    [
        (0.5, 1.0, "faster"),
        (1.05, 1.0, "same"),  # within the noise
        (2.0, 1.0, "slower"),
        (2.0, 2.0, "same"),  # the machine is slower, for everyone
        (1.0, 2.0, "same"),  # better than the machine, but nothing measured is faster
    ],
)
def test_compare_tells_noise_and_drift(ours: float, peers: float, verdict: str) -> None:
    new = _sped_up(_sped_up(_sped_up(made_run(), OURS, ours), "torch", peers), "faiss", peers)
    lines = [line.split() for line in compare.compare(made_run(), new).splitlines()]
    assert [line[-1] for line in lines if line[:2] == ["first", OURS]] == [verdict]
    assert ["first", "drift", f"{peers:.3f}"] in lines


def test_a_gpu_result_has_its_own_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = made_run(cases=made_run().cases[:1])
    gpu.environment = {**gpu.environment, "device": {"kind": "cuda", "name": "Example 9", "driver_version": "5.0"}}
    results = tmp_path / "results"
    for number, result in enumerate((made_run(), gpu)):
        record.save(result, results / "nearest_code" / f"{number}.json")
    record.save(made_run(complete=False), results / "nearest_code" / "later.json")
    found = readme.newest(results)
    assert {key: path.name for key, path in found.items()} == {
        ("nearest_code", "example-7-2c-avx512"): "0.json",
        ("nearest_code", "example-9"): "1.json",
    }
    monkeypatch.setattr(readme, "newest", lambda: found)
    blocks = ("bench:nearest_code", "bench:nearest_code_cuda", "bench:gpu")
    page = tmp_path / "README.md"
    page.write_text("\n".join(f"<!-- {block}:begin -->\n<!-- {block}:end -->" for block in blocks))
    assert plot.main(["--out", str(tmp_path), "--readme", str(page)]) == 0
    text = page.read_text()
    # the cheat is the fastest, and its share of wrong codes stands beside it
    assert "| cheat, 0.10x, 50.00% |" in text
    assert "Example 9, driver 5.0" in text
    assert "- `nearest_code`: 2.00x to 2.00x the best peer" in text
    assert "GPU figures are not measured yet" not in text
    assert "`top_codes`" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "bench_nearest_code_example-7-2c-avx512.png",
        "bench_nearest_code_example-9.png",
    }


def test_every_processor_has_its_table_and_its_newest_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made_run()
    other = {**first.environment, "cpu": {**first.environment["cpu"], "model": "Other", "family": "y"}}
    learned = {**first.environment, "build": {"isa": "amx"}, "date": "2020-02-01T00:00:00+00:00", "commit": "def"}
    for number, stamp in enumerate((first.environment, other, learned)):
        record.save(made_run(environment=stamp), tmp_path / "nearest_code" / f"{number}.json")
    found = readme.newest(tmp_path)
    # the first processor, newer and with more instructions
    assert {key[1]: path.name for key, path in found.items()} == {
        "example-7-2c-amx": "2.json",
        "other-2c-avx512": "1.json",
    }
    monkeypatch.setattr(readme, "newest", lambda: found)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench:{n}:begin --><!-- bench:{n}:end -->" for n in ("nearest_code", "summary")))
    readme.write([page], list(found.values()), tmp_path)
    text = page.read_text()
    assert text.count("| case |") == 2
    assert text.index("[`nearest_code/2.json`]") < text.index("[`nearest_code/1.json`]")
    first, second = "Example(R) CPU 7 @ 2.00GHz, 2 threads, amx", "Other, 2 threads, avx512"
    assert f"| op | {first} | vs vector-quantize-pytorch | {second} |" in text
    assert text.count("2.00x, **3.00x**, 4.00x (2 cases)") == 2
    assert "2 threads, amx: measured at def (2020-02-01); Other" in text


def test_of_a_makers_processors_of_a_kind_the_last_measured_is_shown(tmp_path: Path) -> None:
    def stamp(maker: str, model: str, day: int, isa: str, *wider: str) -> dict[str, Any]:
        base = made_run().environment
        cpu = {**base["cpu"], "model": maker, "family": f"{maker} {model}", "flags": ["avx2", "fma", *wider]}
        return {**base, "cpu": cpu, "build": {"isa": isa}, "date": f"2020-02-{day:02}T00:00:00+00:00"}

    stamps = {
        ("nearest_code", "intel"): stamp("Intel", "6 1 1", 1, "amx", "avx512f", "amx_bf16"),
        ("nearest_code", "wide"): stamp("AMD", "25 17 1", 1, "avx512", "avx512f"),
        ("nearest_code", "older"): stamp("AMD", "23 1 1", 2, "avx2"),
        # measured before, and the other ops not again
        ("top_codes", "older"): stamp("AMD", "23 1 1", 2, "avx2"),
        ("nearest_code", "newer"): stamp("AMD", "25 1 1", 3, "avx2_int16"),
    }
    for (op, name), environment in stamps.items():
        record.save(made_run(op=op, environment=environment), tmp_path / op / f"{name}.json")
    found = readme.newest(tmp_path)
    assert {key: path.name for key, path in found.items()} == {
        ("nearest_code", "amd-2c-avx2_int16"): "newer.json",
        ("nearest_code", "amd-2c-avx512"): "wide.json",
        ("nearest_code", "intel-2c-amx"): "intel.json",
    }
    lines = readme.summary(found).splitlines()
    assert lines[0].startswith("| op | AMD, 2 threads, avx2_int16 | vs")
    assert "| AMD, 2 threads, avx512 |" in lines[0]
    assert "| Intel, 2 threads, amx |" in lines[0]
    record.save(
        made_run(op="kmeans", environment=stamps["nearest_code", "intel"]), tmp_path / "kmeans" / "intel.json"
    )
    told = readme.summary(readme.newest(tmp_path)).splitlines()[3]
    assert told.startswith("| `kmeans` | not measured |  | not measured |  | 2.00x, **3.00x**")


def test_cases_that_are_there_to_hurt_stay_out_of_the_summary(tmp_path: Path) -> None:
    run = made_run()
    hurting = dataclasses.replace(run.cases[1], name="offset-100-sigma")
    run.cases.append(hurting)
    assert hurting.speedup == 4
    record.save(run, tmp_path / "nearest_code" / "run.json")
    assert "2.00x, **3.00x**, 4.00x (2 cases)" in readme.summary(readme.newest(tmp_path))


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_the_figures_of_the_documents_are_those_of_the_results(document: Path) -> None:
    text, held = document.read_text(), 0
    for name, told in readme.blocks(list(newest().values()), readme.CHARTS, document.parent).items():
        if f"<!-- {name}:begin -->" in text:
            assert readme.between_markers(text, name) == told, "run `python -m bench.plot --readme`"
            held += 1
    assert held >= 2
