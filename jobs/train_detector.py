"""The old name of `python -m jobs.train detector`, kept for one version."""

from jobs.command import run_process
from jobs.train.detector import main

if __name__ == "__main__":
    run_process(main)
