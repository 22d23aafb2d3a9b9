"""Docstrings as Markdown: references of other markup become links, comments on fields become their descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`([\w.]+)`")
_FIELD = re.compile(r"^\s*\w+: .*?  # (.+)$")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded, when all names are known."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        for thing in _objects(pkg):
            if thing.is_attribute and not thing.has_docstring:
                _describe_by_comment(thing)
            if thing.docstring:
                # a literal block is announced by two colons elsewhere, and by its indentation here
                text = re.sub(r"::$", ":", thing.docstring.value, flags=re.MULTILINE)
                text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
                thing.docstring.value = _ROLE.sub(lambda role: _link(pkg, thing, role[1]), text)  # noqa: B023


def _objects(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _describe_by_comment(field: griffe.Object) -> None:
    lines = field.source.splitlines()
    if lines and (comment := _FIELD.match(lines[0])):
        field.docstring = griffe.Docstring(f"`{comment[1]}`", parent=field)


def _link(package: griffe.Module, where: griffe.Object, name: str) -> str:
    """A reference to a name of the package, as seen from a docstring; the bare name if it is of another package."""
    relative = name.removeprefix(f"{package.path}.")
    scope: griffe.Object | None = where
    while scope is not None:
        if _has(scope, relative):
            return f"[`{name}`][{_shortest(package, scope, relative)}]"
        scope = scope.parent
    return f"`{name}`"


def _shortest(package: griffe.Module, scope: griffe.Object, name: str) -> str:
    # pages are headed by public names, which are those that the package itself offers
    head, _, rest = name.partition(".")
    if scope.is_class and name.partition(".")[0] not in package.members:
        head, rest = scope.name, name
    if head in package.members:
        return ".".join(filter(None, (package.path, head, rest)))
    return f"{scope.path}.{name}"


def _has(scope: griffe.Object, name: str) -> bool:
    try:
        scope[name]
    except (KeyError, griffe.AliasResolutionError):
        return False
    return True
