"""`python -m jobs.compare`: are the faces of these photos the same person?"""
