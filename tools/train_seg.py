"""Trains a segmentor; ``--help`` shows the options. The same as ``visionattn train-seg``."""

import sys

from visionattn.segmentation.train import main

if __name__ == "__main__":
    sys.exit(main())
