"""Build the documentation into site/: ``python docs/build_site/build.py [FOLDER]``; every warning is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path = ROOT / "site") -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # versions are pinned; what comes after them is no news of this build
    from mkdocs.__main__ import cli

    cli(["build", "--quiet", "--site-dir", str(folder.resolve())], standalone_mode=False)
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
