"""Measures kernels and models, and draws the results: see ``python tools/benchmark.py --help``."""

import sys

from visionattn.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
