"""Says what a trained model makes of pictures; ``--help`` shows the options. The same as ``visionattn predict``."""

import sys

from visionattn.predict.cli import main

if __name__ == "__main__":
    sys.exit(main())
