"""The old name of `python -m jobs.train detector`, kept for one version."""

import sys

from jobs.train.detector import main

if __name__ == "__main__":
    sys.exit(main())
