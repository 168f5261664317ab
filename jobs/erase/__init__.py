"""`python -m jobs.erase`: delete images and their faces from an output."""
