"""Check before `ray job submit --working-dir .` that Ray accepts the size of the code. See --help."""

from __future__ import annotations

import sys

from jobs.command import run_command, run_process
from jobs.options import command_parser
from pipeline.run.cluster import REPOSITORY, check_working_dir

DESCRIPTION = """Print how much code `ray job submit --working-dir .` sends, and fail if Ray would refuse it.

    python -m jobs.preflight && ray job submit --working-dir . -- python -m jobs.extract s3://bucket/photos/ s3://…

Ray does not send what .gitignore and .rayignore name. Exit codes: 0 it can be submitted; 2 it is too large.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    command_parser("preflight", DESCRIPTION).parse_args(sys.argv[1:] if argv is None else argv)
    return run_command("preflight", check, again="Run it again.")


def check() -> None:
    """Print the size. Raises ClusterError where Ray would refuse it."""
    print(check_working_dir(REPOSITORY, submitted=True))


if __name__ == "__main__":
    run_process(main)
