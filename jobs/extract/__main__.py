"""The main job's command: `python -m jobs.extract INPUT… OUTPUT`; see --help."""

from jobs.command import run_process
from jobs.extract.job import main

if __name__ == "__main__":
    run_process(main)
