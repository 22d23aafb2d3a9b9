"""Triton's kernels, compiled on a machine without a GPU and put into the cache of one that has it.

Triton finds a compiled kernel by a hash of all that decides what it is: its own sources and its library, the kernel's
source with everything it calls, types and divisibility of the arguments, constants, options, target, ptxas, variables
of the environment. Of these the library alone is another on the other machine, built for another Python from the same
sources; so a kernel is kept by all but that, and there the hash is formed anew. Whatever else differs gives another
hash: Triton does not find the kernel and compiles it, as if nothing had been carried.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench.gpu.context import Unavailable
from bench.machine import ROOT

FOLDER = ROOT / "runs" / "carried"  # with it go the wheels of peers, and the findings that a rerun completes
KERNELS = FOLDER / "kernels.zip"
PEERS = ROOT / "build" / "peers"  # where the wheels are installed
_MANIFEST = "manifest.json"


@contextmanager
def keys() -> Iterator[dict[str, str]]:
    """The hashes that Triton forms meanwhile, and what it forms them of, but for its own part."""
    compiler, cache = _module("compiler.compiler"), _module("runtime.cache")
    found: dict[str, str] = {}

    def noting(*args: Any, **options: Any) -> str:
        key: str = cache.get_cache_key(*args, **options)
        found[_hash(key)] = key.removeprefix(cache.triton_key())
        return key

    with mock.patch.object(compiler, "get_cache_key", noting):
        yield found


def counting() -> dict[str, int]:
    """How many kernels this process finds compiled from now on, and how many it has to compile."""
    counted = {"found": 0, "compiled": 0}

    def note(*, cache_hit: bool, **_: Any) -> None:
        counted["found" if cache_hit else "compiled"] += 1

    _module("knobs").compilation.listener = note
    return counted


def pack(path: Path, kernels: Sequence[Any], parts: dict[str, str]) -> None:
    """Write compiled kernels and what their hashes are formed of, as :func:`keys` found it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        told = {"compiler": _compiler(), "parts": [parts[kernel.hash] for kernel in kernels]}
        archive.writestr(_MANIFEST, json.dumps(told))
        for number, kernel in enumerate(kernels):
            for name, file in kernel.metadata_group.items():
                # the machine code and what it wants; everything before it, nobody asks for
                if name.endswith((".json", ".cubin")):
                    archive.write(file, f"{number}/{name}")


def unpack(path: Path) -> dict[str, int]:
    """Put the kernels where Triton looks for them here: ``TRITON_CACHE_DIR``, or what it takes without.

    Returns:
        How many there are, and how many of them are new here.

    Raises:
        Unavailable: if there are none, or the compiler here is another.
    """
    if not path.exists():
        raise Unavailable(f"no {path.name}: kernels are compiled here")
    cache = _module("runtime.cache")
    new = 0
    with zipfile.ZipFile(path) as archive:
        told = json.loads(archive.read(_MANIFEST))
        if told["compiler"] != _compiler():
            raise Unavailable(f"{path.name} is of another Triton than the one here ({_module('').__version__})")
        files: dict[str, list[str]] = {}
        for member in archive.namelist():
            number, _, name = member.rpartition("/")
            files.setdefault(number, []).append(name)
        for number, part in enumerate(told["parts"]):
            manager = cache.get_cache_manager(_hash(cache.triton_key() + part))
            names = files[str(number)]
            group_name = next(name for name in names if name.endswith(".json"))
            if manager.get_group(group_name):
                continue
            # a group names its files by their paths, which are those of this machine
            group = {name: manager.put(archive.read(f"{number}/{name}"), name) for name in names}
            manager.put_group(group_name, group)
            new += 1
    return {"kernels": len(told["parts"]), "new": new}


def _compiler() -> str:
    """What Triton says of itself in every key, but for the hash of its library."""
    key: str = _module("runtime.cache").triton_key()
    library = hashlib.sha256(Path(_module("_C.libtriton").__file__).read_bytes()).hexdigest()
    if library not in key:
        raise RuntimeError("triton_key: expected the hash of libtriton in it, got none")
    return _hash(key.replace(library, ""))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _module(name: str) -> Any:
    return importlib.import_module(f"triton.{name}".rstrip("."))
