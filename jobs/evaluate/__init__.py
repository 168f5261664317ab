"""`python -m jobs.evaluate`: measure models, and outputs of jobs.extract."""
