"""``python -m vqkernels.kmeans --help``."""

import sys

from vqkernels.kmeans.command import main

sys.exit(main())
