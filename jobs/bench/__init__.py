"""`python -m jobs.bench`: measure speed and memory. One module for each benchmark."""
