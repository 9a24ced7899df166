"""``python -m visionattn``: the environment report; with arguments the same as the console script ``visionattn``."""

import sys

from visionattn import cli, environment

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]) if sys.argv[1:] else environment.main([]))
