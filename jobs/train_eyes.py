"""The old name of `python -m jobs.train eyes`, kept for one version."""

import sys

from jobs.train.eyes import main

if __name__ == "__main__":
    sys.exit(main())
