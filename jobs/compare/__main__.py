"""The command line of `python -m jobs.compare`."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

from jobs.command import run_command, run_process, say
from jobs.compare.comparison import Comparison
from jobs.options import DEFAULT_MODELS, ArgumentError, add_single_writer, command_line, command_parser
from jobs.people.files import JSON_FILE, PAGE, check_files
from jobs.people.making import making, write_made
from jobs.people.options import add_model_options, rate
from jobs.people.subjects import Subjects
from pipeline.output.derived import Derived, Maker
from pipeline.people.likeness import DEFAULT_FPR, Threshold, cosines, threshold_at

MAX_FACES = 1000      # half a million pairs, 50 MB of JSON

DESCRIPTION = """Compare the faces of photos: is it the same person?

    python -m jobs.compare ann.jpg party.jpg
    python -m jobs.compare ann.jpg s3://bucket/photos/party.jpg --page comparison.html
    python -m jobs.compare ann.jpg 'out/#/photos/party.jpg#2' --json comparison.json

Every face of every photo is compared with every other by the cosine of their embeddings: 1 for equal vectors, about 0
for strangers. From the embedder's threshold on, two faces count as the same person. The threshold depends on how many
pairs of different people you accept to be called the same, the false positive rate --fpr: 0.001 is one pair in a
thousand. It was measured on photos of celebrities, and holds less for children, relatives and poor photos. A verdict is
an estimate, not a proof of identity.

The first line of the answer has the verdict. With more than two faces the faces follow, numbered, and the cosine of
each pair. --page writes a page that shows each pair before and after alignment, with the eye points; --json writes all
faces, cosines and verdicts.

A photo is a path or a URI, as INPUT of jobs.extract; an image in an archive is <archive>#<member>. A row of an output
is OUT#uri#face_index: the last # is the index's, and OUT is the shortest beginning that holds output.json. With rows,
photos are read with the models and the settings of the first output. Photos are read in this process, on the CPU.

Exit codes: 0 done, whatever the verdict; 1 it broke; 2 wrong arguments, a photo that cannot be read or shows no face,
faces of two embedders, or a rate that the embedder was not calibrated for; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    arguments.again = command_line("compare", argv, without=arguments.photos)
    return run_command("compare", partial(compare, arguments), again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("compare", DESCRIPTION)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="a photo, or a row of an output: OUT#uri#face_index")
    parser.add_argument("--fpr", type=rate, metavar="RATE", help=(
        "the false positive rate of the verdict, one that the embedder was calibrated for: 0.001, 0.01, 0.05, 0.1 or "
        f"0.2 for the shipped ones; default: {DEFAULT_FPR:g}"))
    parser.add_argument("--page", metavar="FILE", help="write a page that shows the pairs, one HTML file")
    parser.add_argument("--json", metavar="FILE", help="write faces, cosines and verdicts as JSON")
    add_model_options(parser)
    add_single_writer(parser)
    return parser


def compare(arguments: argparse.Namespace) -> None:
    """Read the faces, print the answer, and write the files."""
    check_files((arguments.json, JSON_FILE), (arguments.page, PAGE))
    names = {role: getattr(arguments, role) for role in DEFAULT_MODELS}
    subjects = Subjects(arguments.photos, names, arguments.weights)
    threshold = choose_threshold(subjects, arguments.fpr)
    sources = [source.storage for source in subjects.outputs] if arguments.page or arguments.json else []
    with making("compare", sources, single_writer=arguments.single_writer) as maker:
        comparison = read_and_compare(arguments, subjects, threshold)
        for line in comparison.lines():
            print(line)
        write_files(arguments, comparison, maker)


def read_and_compare(arguments: argparse.Namespace, subjects: Subjects, threshold: Threshold | None) -> Comparison:
    """The comparison of all faces. Raises a UserError if one cannot be read, and ArgumentError for one face alone."""
    found = subjects.read(pictures=bool(arguments.page))
    if not 2 <= len(found.faces) <= MAX_FACES:
        raise ArgumentError(few_or_many(len(found.faces)))
    return Comparison(
        found.faces, cosines(found.vectors, found.vectors), threshold, subjects.embedder, len(arguments.photos)
    )


def write_files(arguments: argparse.Namespace, comparison: Comparison, maker: Maker) -> None:
    """Write the page and the JSON that were asked for. Their command on record leaves out the names of photos."""
    if arguments.json:
        content = json.dumps(comparison.content(), indent=1, allow_nan=False)
        made = Derived("comparison", arguments.json, arguments.again, rows_only=False)
        say(f"JSON: {write_made(maker, made, content.encode())}")
    if arguments.page:
        from jobs.compare.page import render_page  # jinja2 takes a moment to import

        made = Derived("page", arguments.page, arguments.again, rows_only=False)
        say(f"Page: {write_made(maker, made, render_page(comparison).encode())}")


def choose_threshold(subjects: Subjects, fpr: float | None) -> Threshold | None:
    """The threshold of the verdicts; None if the embedder has none and the user asked for no rate."""
    thresholds, embedder = subjects.thresholds()
    if not thresholds and fpr is None:
        return None
    return threshold_at(thresholds, DEFAULT_FPR if fpr is None else fpr, embedder)


def few_or_many(faces: int) -> str:
    """Why so many faces are not compared."""
    if faces < 2:
        return "there is one face only: name a second photo"
    return f"there are {faces:,} faces, more than {MAX_FACES:,}: name fewer photos"


if __name__ == "__main__":
    run_process(main)
