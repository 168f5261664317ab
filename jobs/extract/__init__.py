"""`python -m jobs.extract`: the main job."""
