"""The main job's command: `python -m jobs.extract INPUT… OUTPUT`; see --help."""

from jobs.extract.job import main
from pipeline.run.interrupt import leave

if __name__ == "__main__":
    leave(main())
