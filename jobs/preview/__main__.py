"""The command line of `python -m jobs.preview`."""

from __future__ import annotations

import argparse

from jobs.command import run_command, run_process
from jobs.options import add_single_writer, command_parser, count
from jobs.preview.write import write_preview
from jobs.report.write import SMALL

DESCRIPTION = """Write one HTML page that shows photos of an output, with each face before and after alignment.

    python -m jobs.preview out/
    python -m jobs.preview s3://bucket/faces --images 200 --html faces.html

The page contains its pictures and loads nothing from elsewhere. It is the page of jobs.report without the gallery.

Exit codes: 0 done; 1 it broke; 2 wrong arguments, or OUTPUT is no output; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    arguments = argument_parser().parse_args(argv)

    def run() -> None:
        print(write_preview(
            arguments.output, arguments.html, max_images=arguments.images, single_writer=arguments.single_writer
        ))

    return run_command("preview", run, again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("preview", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("--images", type=count, default=SMALL.photos, metavar="N",
                        help="the most photos on the page; default: %(default)s")
    parser.add_argument("--html", metavar="FILE", default="preview.html", help="the page; default: %(default)s")
    add_single_writer(parser)
    return parser


if __name__ == "__main__":
    run_process(main)
