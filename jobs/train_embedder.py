"""The old name of `python -m jobs.train embedder`, kept for one version."""

from jobs.command import run_process
from jobs.train.embedder import main

if __name__ == "__main__":
    run_process(main)
