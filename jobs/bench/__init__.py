"""`python -m jobs.bench`: measure speed and memory."""
