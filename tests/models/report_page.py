"""Reads a report back: scores, pictures, links."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

_PREFIX = "data:image/webp;base64,"


class Page(HTMLParser):
    """Scores by (recipe, metric), and the sources of all pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scores: dict[tuple[str, str], tuple[str, str, bool]] = {}  # value, text, best
        self.photo_values: list[str] = []
        self.prior: dict[str, str] = {}
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._recipe = ""
        self._open: tuple[str, str, bool] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "tr":
            self._recipe = found.get("data-recipe", "")
        elif tag == "img":
            self.sources.append(found["src"])
        elif tag == "a":
            self.links.append(found["href"])
        elif tag == "data" and found["data-metric"] == "photo":
            self.photo_values.append(found["value"])
        elif tag == "data" and found["data-metric"].startswith("val_"):
            self.prior[found["data-metric"]] = found["value"]
        elif tag == "data":
            self._open = (found["data-metric"], found["value"], found.get("class") == "best")

    def handle_data(self, text: str) -> None:
        self.text += text
        if self._open:
            metric, value, best = self._open
            self.scores[self._recipe, metric] = (value, text, best)
            self._open = None


def decode(source: str) -> np.ndarray:
    """The pixels of an embedded picture."""
    assert source.startswith(_PREFIX)
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix(_PREFIX), validate=True))) as picture:
        return np.asarray(picture.convert("RGB"))


def without_pictures(text: str) -> str:
    return re.sub(re.escape(_PREFIX) + "[\\w+/=]*", "", text)
