"""The command line of `python -m jobs.report`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from jobs.command import end_progress, run_command, run_process, say_progress
from jobs.options import add_single_writer, command_line, command_parser, count, positive
from jobs.report.write import LARGE, MAX_FACES, Page, write_report

DESCRIPTION = """Write one HTML page that shows what is in an output.

    python -m jobs.report out/ report.html
    python -m jobs.report s3://bucket/faces s3://bucket/reports/faces.html --faces 2000

The page has the images by status with examples of each reason; histograms of faces a photo, size, score, roll,
sharpness and norm; a gallery of faces that filters and sorts, where a click shows the most alike faces of the page;
photos with boxes, eye points, and each face before and after alignment; settings, models and licences. It is one file
that loads nothing from elsewhere, for a phone or a wide screen. Without JavaScript all but filters and clicks is there.

Totals and histograms are of all rows; of more than 2,000 parts so many are read, spread evenly, and the page says so.
Faces are shown of whole photos, which are chosen by a hash of their names: each is as likely as any other, and the same
output gives the same page. Their photos are read again; one that is gone is a note. The output need not be finished.

Exit codes: 0 done; 1 it broke; 2 wrong arguments, or no output; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)

    def run() -> None:
        sizes = replace(LARGE, photos=arguments.photos, faces=arguments.faces)
        page = Page(arguments.page, "report", command_line("report", argv), sizes)
        place = write_report(
            arguments.output, page, single_writer=arguments.single_writer, progress=say_progress
        )
        end_progress()
        print(place)

    return run_command("report", run, again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("report", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("page", metavar="PAGE.html", help="the page, a path or a bucket URI")
    parser.add_argument("--faces", type=faces, default=LARGE.faces, metavar="N", help=(
        f"about so many faces in the gallery, at most {MAX_FACES:,}; 1,000 take 0.7 MB; default: %(default)s"))
    parser.add_argument("--photos", type=count, default=LARGE.photos, metavar="N", help=(
        "so many photos with their pictures; one takes about 0.1 MB; default: %(default)s"))
    add_single_writer(parser)
    return parser


def faces(text: str) -> int:
    """A number of faces."""
    value = positive(text)
    if value > MAX_FACES:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_FACES:,}")
    return value


if __name__ == "__main__":
    run_process(main)
