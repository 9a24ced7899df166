"""Where a query looks: see ``python tools/visualize.py --help``."""

import sys

from visionattn.visualize.cli import main

if __name__ == "__main__":
    sys.exit(main())
