"""Evaluates image classifiers; ``--help`` shows the options. The same as ``visionattn validate``."""

import sys

from visionattn.validate.cli import main

if __name__ == "__main__":
    sys.exit(main())
