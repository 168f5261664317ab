"""`python -m jobs.train`: train the detector, the eye points or an embedder."""
