"""The documentation: every page has its place, every public name its entry, and the site needs no network.

That its snippets run, its links exist and its commands parse, ``test_readme.py`` checks as for every document.
Oracles: the files of the repository, ``__all__`` of the packages, and the strict build itself.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import pytest
import yaml

import vqkernels
import vqkernels.nn
import vqkernels.testing
from docs.build_site import hooks, pictures
from docs.build_site.docstrings import Docstrings
from models.claims import CLAIMS
from models.claims.result import result_of

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
# classes that are made when they are asked for
DERIVED = {f"vqkernels.compat.{library}" for library in ("dac", "moshi", "snac", "transformers")}
LIBRARIES = ("diffusers", "encodec.quantization", "llamagen", "seed_voken", "taming", "vector_quantize_pytorch")
# what a browser loads by itself; a link to follow is none
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc="?([^"\s>]+)|<link[^>]*\shref="?([^"\s>]+)|url\(["']?([^)"']+)"""
)


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)


def test_every_page_has_its_place() -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    placed = list(pages(CONFIG["nav"]))
    assert len(placed) == len(set(placed))
    assert set(placed) == written | set(hooks.documents()), (
        "the nav of mkdocs.yml has other pages than there are documents"
    )


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(
        r"^::: (\S+)$", "\n".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md")), re.MULTILINE
    )
    assert len(shown) == len(set(shown))
    public = {f"vqkernels.{name}" for name in vqkernels.__all__ if name != "__version__"}
    public |= {f"vqkernels.nn.{name}" for name in vqkernels.nn.__all__ if name not in vqkernels.__all__}
    public |= {f"vqkernels.testing.{name}" for name in vqkernels.testing.__all__}
    for library in LIBRARIES:
        names = importlib.import_module(f"vqkernels.compat.{library}").__all__
        public |= {f"vqkernels.compat.{library}.{name}" for name in names if name not in vqkernels.__all__}
    assert public - set(shown) == set(), "docs/api has no entry for a public name"
    for name in shown:
        module, _, thing = name.rpartition(".")
        importlib.import_module(name if name in DERIVED else module)
        assert hasattr(importlib.import_module(module), thing), name


def test_docstrings_become_markdown(tmp_path: Path) -> None:
    source = '''
class Pair:
    """A pair, as of :func:`pair`; see :class:`Other`::

        first, second

    Example:
        >>> 1
        1
    """

    first: int  # [N] int64

    def swap(self):
        """The other way round, unlike :meth:`first`."""

def pair(): ...
'''
    (tmp_path / "made.py").write_text(source)
    loaded = griffe.load(
        "made", search_paths=[tmp_path], extensions=griffe.load_extensions(Docstrings), resolve_aliases=False
    )
    told = loaded["Pair"].docstring.value
    assert "as of [`pair`][made.pair]; see `Other`:\n" in told
    assert "Examples:\n" in told
    assert loaded["Pair.swap"].docstring.value == "The other way round, unlike [`first`][made.Pair.first]."
    assert loaded["Pair.first"].docstring.value == "`[N] int64`"


def test_the_tables_of_claims_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_RESULTS", tmp_path)
    assert hooks.claims() == "No result is recorded in `models/results/claims` yet."
    for name in ("mgvq-groups", "lc-replacement"):
        trial = CLAIMS[name].trial("pocket")
        assert trial is not None
        values: dict[str, Any] = {variant.name: defaultdict(lambda: [0.5]) for variant in trial.variants}
        (tmp_path / f"{name}.json").write_text(json.dumps(result_of(CLAIMS[name], "pocket", (0,), values, {}, {})))
    every, one = hooks.claims(), hooks.claims(["lc-replacement", "no-such-claim"])
    assert every.count("\n| `") == 2
    assert "(claims-page.html)" in every
    assert one.count("\n| `") == 1
    assert "| `lc-replacement` |" in one
    shown = re.findall(r"<!-- claims: (.*?) -->", (ROOT / "docs/choose.md").read_text())
    assert set(shown[0].split()) <= set(CLAIMS)


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs/build_site/build.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    built = [path for kind in ("html", "css") for path in tmp_path.rglob(f"*.{kind}")]
    assert len(built) > len(list(pages(CONFIG["nav"])))
    outside = {
        (path.name, target)
        for path in built
        for found in LOADED.findall(path.read_text())
        if (target := next(filter(None, found))).startswith(("http:", "https:", "//"))
    }
    assert outside == set()


def test_what_is_loaded_from_outside_is_found() -> None:
    page = '<script src="https://a.b/c.js"></script><link rel=x href=//a.b/d.css><a href="https://e.f"> url(http://g.h/i)'
    found = [next(filter(None, groups)) for groups in LOADED.findall(page)]
    assert found == ["https://a.b/c.js", "//a.b/d.css", "http://g.h/i"]


def test_the_pictures_show_what_the_pages_say() -> None:
    cancelled, known, blocks, summed = pictures.cancellation(), pictures.bounds(), pictures.boxes(), pictures.sums(20)
    assert cancelled.expanded[-1] > cancelled.expanded[0]
    assert cancelled.exact == [0.0] * len(cancelled.offsets)
    # bounds are bounds, and the nearest code is among those that are left
    assert (known.lower <= known.exact).all()
    assert (known.lower[:, 0] <= known.limit).all()
    assert 1 <= known.left[1] < known.left[0] < len(known.exact)
    away = ((blocks.codes - blocks.query) ** 2).sum(1)
    assert away.argmin() == blocks.nearest
    inside = ((blocks.codes >= blocks.boxes[:, None, 0]) & (blocks.codes <= blocks.boxes[:, None, 1])).all(2)
    assert inside.any(0).all()
    assert blocks.scanned[inside[:, blocks.nearest]].all()
    assert 0 < blocks.scanned.sum() < len(blocks.boxes)
    assert len(set(summed.integers)) == 1 < len(set(summed.floats))


def test_every_picture_is_drawn_and_shown(tmp_path: Path) -> None:
    drawn = {path.name for path in pictures.draw_all(tmp_path)}
    assert drawn == {path.name for path in pictures.FOLDER.glob("*.svg")}
    assert drawn <= set(re.findall(r"assets/kernels/([\w.]+)\)", (ROOT / "docs/kernels.md").read_text()))
