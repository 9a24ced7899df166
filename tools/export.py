"""Writes a model for use elsewhere; ``--help`` shows the options. The same as ``visionattn export``."""

import sys

from visionattn.export.cli import main

if __name__ == "__main__":
    sys.exit(main())
