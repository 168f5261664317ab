"""The old name of `python -m jobs.train embedder`, kept for one version."""

import sys

from jobs.train.embedder import main

if __name__ == "__main__":
    sys.exit(main())
