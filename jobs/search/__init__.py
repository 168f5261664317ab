"""`python -m jobs.search`: where else in an output is this face?"""
