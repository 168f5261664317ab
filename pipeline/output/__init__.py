"""What was done: the claim on an output, its lease, ledger, parts and reports."""
