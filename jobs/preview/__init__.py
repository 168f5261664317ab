"""`python -m jobs.preview`: a page that shows photos and faces of an output."""
