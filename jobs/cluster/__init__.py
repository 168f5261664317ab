"""`python -m jobs.cluster`: who is who among the faces of an output."""
