"""The pages in a real browser: a phone and a desk, light and dark. Chromium runs headless, without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from test_report import write_demo

from models.report import write_report
from models.report.claims import RESULTS, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the machine has no Chromium: pages were not looked at")

PHONE, DESK = 390, 1280
Seen = dict[int, dict[str, Any]]  # by width
SCHEMES = {"light": 1, "dark": 0}  # as the browser counts them
# what is read on the page, and what it stands on
TEXTS = "h1, .lead, h2, td, td small, th, .note, figcaption, .chip > span, dt, dd, li, .verdict, .chart text"
MEASURE = """
<script>
addEventListener("load", () => {
  const find = (what) => [...document.querySelectorAll(what)].filter(e => e.getClientRects().length > 0);
  const style = (e) => getComputedStyle(e);
  const beyond = (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1;
  const drawn = (e) => e instanceof SVGElement;
  const size = (e) => parseFloat(style(e).fontSize) * (drawn(e) ? e.getScreenCTM().a : 1);
  parent.postMessage({
    window: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    width: document.documentElement.scrollWidth,
    beyond: find("body *").filter(beyond).map(e => e.outerHTML.slice(0, 80)),
    broken: [...document.images].filter(e => !e.naturalWidth).length,
    strips: find(".strip").map(e => style(e).gridTemplateColumns.split(" ").length),
    paper: style(document.body).backgroundColor,
    texts: find(TEXTS).map(e => [e.outerHTML.slice(0, 80), drawn(e) ? style(e).fill : style(e).color, size(e)]),
  }, "*");
});
</script>
""".replace("TEXTS", json.dumps(TEXTS))
FRAMES = """<!DOCTYPE html><pre></pre>
<script>
addEventListener("message", e => document.querySelector("pre").append(JSON.stringify(e.data) + "\\n"));
</script>
"""


def looked_at(page: Path, scheme: str) -> Seen:
    """What a phone and a desk make of a page; in frames, because a browser's window has a least width."""
    page.with_name("measured.html").write_text(page.read_text(encoding="utf-8") + MEASURE, encoding="utf-8")
    frames = [
        f'<iframe src="measured.html" width="{width}" height="900" style="border:0"></iframe>'
        for width in (PHONE, DESK)
    ]
    outer = page.with_name(f"{scheme}.html")
    outer.write_text(FRAMES + "".join(frames), encoding="utf-8")
    options = (
        f"--user-data-dir={page.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
    )
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    command = (str(CHROMIUM), "--headless=new", "--disable-gpu", "--hide-scrollbars", *sandbox, *options)
    action = ("--virtual-time-budget=10000", "--dump-dom", outer.as_uri())
    found = subprocess.run((*command, *action), capture_output=True, text=True, timeout=120)
    shown = re.search(r"<pre>(.*?)</pre>", found.stdout, re.DOTALL)
    assert shown, found.stderr[-500:]
    seen = [json.loads(unescape(line)) for line in shown[1].splitlines()]
    return {measured["window"]: measured for measured in seen}


def luminance(colour: str) -> float:
    """Of WCAG 2, from "rgb(r, g, b)"."""
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colours: str) -> float:
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["demo", "claims"])
def pages(request: pytest.FixtureRequest, scheme: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "demo":
        write_demo(folder)
        return looked_at(write_report(folder), scheme)
    write_page(RESULTS, folder / "claims.html")
    return looked_at(folder / "claims.html", scheme)


def test_nothing_is_wider_than_the_screen(pages: Seen) -> None:
    assert pages.keys() == {PHONE, DESK}
    for width, page in pages.items():
        assert page["width"] <= width
        assert page["beyond"] == []


def test_the_scheme_is_followed_and_text_can_be_read(pages: Seen, scheme: str) -> None:
    for page in pages.values():
        assert page["dark"] == (scheme == "dark")
        assert (luminance(page["paper"]) < 0.1) == page["dark"]
        assert page["texts"]
        for name, colour, size in page["texts"]:
            assert contrast(colour, page["paper"]) >= 4.5, (name, colour, page["paper"])
            assert size >= 10, name


def test_pictures_show_and_fewer_stand_side_by_side_on_a_phone(pages: Seen) -> None:
    assert not any(page["broken"] for page in pages.values())
    phone, desk = pages[PHONE]["strips"], pages[DESK]["strips"]
    assert (set(phone), set(desk)) in (({3}, {6}), (set(), set()))  # the claims have none
