"""``python -m models.report runs/demo``: write the page again from the results of a finished demo."""

import sys
from pathlib import Path

from models.report.page import write_report

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m models.report DEMO_DIR")
    print(write_report(Path(sys.argv[1])))
