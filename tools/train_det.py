"""Trains a detector; ``--help`` shows the options. The same as ``visionattn train-det``."""

import sys

from visionattn.detection.train import main

if __name__ == "__main__":
    sys.exit(main())
