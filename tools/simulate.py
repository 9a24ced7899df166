"""Bounds on the speed-up of neighborhood attention: see ``python tools/simulate.py --help``."""

import sys

from visionattn.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main())
