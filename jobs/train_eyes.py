"""The old name of `python -m jobs.train eyes`, kept for one version."""

from jobs.command import run_process
from jobs.train.eyes import main

if __name__ == "__main__":
    run_process(main)
