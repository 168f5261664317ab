"""The output of a run: its claim, lease, ledger, parts, to-do and report."""
