"""What the site holds beside docs/: the documents that lie with the code, and the files that pages link to.

A document is written once, for readers of the repository; here it becomes a page, and a link to another document
leads to the page of that. Whatever else a page links to is copied into the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_RESULTS = ROOT / "models" / "results" / "claims"
_CLAIMS = re.compile(r"<!-- claims:? ?([\w -]*?) ?-->")
_CLAIMS_PAGE = "claims-page.html"
_LINK = re.compile(r"(\]\(|<img[^>]* src=\")([^)#\s\":]+)(?=[)#\s\"])")


def documents() -> list[str]:
    """Documents outside docs/ that are pages: those of the folders, and those about the project."""
    folders = (ROOT / folder for folder in ("bench", "csrc", "models", "vqkernels"))
    inside = sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.md"))
    return ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *inside]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for document in documents():
        files.append(_file(document, config))
    if results := _claims():
        from models.report.claims import render

        files.append(File.generated(config, _CLAIMS_PAGE, content=render(results)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = _CLAIMS.sub(lambda marker: claims(marker[1].split()), markdown)
    here = page.file.src_uri
    source = here if here in documents() else f"docs/{here}"

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if (ROOT / target / "README.md").is_file():
            target += "/README.md"
        uri = target.removeprefix("docs/")
        # what does not exist, or is no page, the build complains of
        if (
            not (ROOT / target).is_file()
            or target.startswith("..")
            or (uri not in files.src_uris and uri.endswith(".md"))
        ):
            return found[0]
        if uri not in files.src_uris:
            files.append(_file(target, config))
        return found[1] + posixpath.relpath(uri, posixpath.dirname(here) or ".")

    return _LINK.sub(link, markdown)


def claims(names: Sequence[str] = ()) -> str:
    """The table of the results that are recorded: of some claims, or of all with a link to their page."""
    results = _claims()
    chosen = [result for result in results if not names or result["claim"] in names]
    if not chosen:
        return "No result is recorded in `models/results/claims` yet."
    from models.report.claims import readme_table

    every = "" if names else f"\n\n[Every claim with its chart, its variants and its machine]({_CLAIMS_PAGE})."
    return readme_table(chosen) + every


def _claims() -> list[dict[str, Any]]:
    if not any(_RESULTS.glob("*.json")):
        return []
    from models.claims import CLAIMS
    from models.report.claims import read_results

    return read_results(_RESULTS, tuple(CLAIMS))


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, src_dir=str(ROOT), dest_dir=config.site_dir, use_directory_urls=config.use_directory_urls)
