"""Trains an image classifier; ``--help`` shows the options. The same as ``visionattn train``."""

import sys

from visionattn.training.train import main

if __name__ == "__main__":
    sys.exit(main())
