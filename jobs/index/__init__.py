"""`python -m jobs.index`: make an index of an output, for a fast `jobs.search --index`."""
