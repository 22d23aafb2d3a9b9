"""What the site holds beside docs/: the documents that lie with the code, and the files that pages link to.

A document is written once, for readers of the repository; here it becomes a page, and a link to another document
leads to the page of that. Whatever else a page links to is copied into the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_RESULTS = ROOT / "models" / "results" / "claims"
_CLAIMS = "<!-- claims -->"
_LINK = re.compile(r"(\]\(|<img[^>]* src=\")([^)#\s\":]+)(?=[)#\s\"])")


def documents() -> list[str]:
    """Documents outside docs/ that are pages: those of the folders, and those about the project."""
    folders = (ROOT / folder for folder in ("bench", "csrc", "models", "vqkernels"))
    inside = sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.md"))
    return ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *inside]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for document in documents():
        files.append(_file(document, config))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = markdown.replace(_CLAIMS, claims()) if _CLAIMS in markdown else markdown
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


def claims() -> str:
    """The table of all results that are recorded."""
    if not list(_RESULTS.glob("*.json")):
        return "No result is recorded in `models/results/claims` yet."
    from models.report.claims import read_results, readme_table

    return readme_table(read_results(_RESULTS))


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, src_dir=str(ROOT), dest_dir=config.site_dir, use_directory_urls=config.use_directory_urls)
