"""Before `ray job submit --working-dir .`: is the code small enough to be sent? Says what is largest. See --help."""

from __future__ import annotations

import argparse
import sys

from pipeline.run.cluster import REPOSITORY, ClusterError, check_working_dir

READY, TOO_LARGE = 0, 2

DESCRIPTION = """Say how much code `ray job submit --working-dir .` would send, and stop when Ray would refuse it.

    python -m jobs.preflight && ray job submit --working-dir . -- python -m jobs.extract s3://bucket/photos/ s3://…

.gitignore and .rayignore leave files out. Exit codes: 0 it can be submitted; 2 it is too large.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.preflight", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    try:
        print(check_working_dir(REPOSITORY, submitted=True))
    except ClusterError as error:
        print(f"facelake: {error}", file=sys.stderr)
        return TOO_LARGE
    return READY


if __name__ == "__main__":
    sys.exit(main())
