"""The command line of `python -m jobs.duplicates`."""

from __future__ import annotations

import argparse
import csv
import sys
import time
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs.command import end_progress, run_command, run_process, say, say_progress
from jobs.options import add_single_writer, command_line, command_parser
from jobs.people.files import TABLE, check_files
from jobs.people.making import making, write_made
from jobs.people.options import positive_cosine
from pipeline.output.derived import Derived, Maker
from pipeline.output.ledger import to_parquet
from pipeline.people.duplicates import (
    NEAR_COSINE,
    NEAR_PLACE,
    NEAR_SIZE,
    SAME_COSINE,
    SAME_MIN_PX,
    Duplicates,
)
from pipeline.people.outputs import open_output
from pipeline.text import printable

KINDS = ("equal", "near", "same_person")

DESCRIPTION = f"""Find images that are in an output more than once, from its tables alone.

    python -m jobs.duplicates out/
    python -m jobs.duplicates s3://bucket/faces --out duplicates.parquet

Three kinds of groups:

equal        files with the same sha256
near         photos whose largest faces are alike (--min-cosine) and at the same place: within {NEAR_PLACE:.1%} of the
             picture's sides, the eyes too, and {NEAR_SIZE:.0%} of its size and of the picture's shape. Copies in other
             sizes and qualities, and neighbours in a burst. Photos without faces are not compared
same_person  two faces of one photo that are alike (--same-cosine), most alike first: a mirror, a collage, a poster, a
             face found twice, or two people who look alike. Only faces of {SAME_MIN_PX} px and more that could be
             aligned

A row for each image of a group, or each face: kind, group, uri, face_index, cosine (to the group's first), width,
height, file_bytes. They are printed, separated by tabs, or written to --out. A cropped or mirrored copy is not found.

Exit codes: 0 done, also if nothing was found; 1 it broke; 2 wrong arguments; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    arguments.again = command_line("duplicates", argv)
    return run_command("duplicates", partial(duplicates, arguments), again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("duplicates", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("--out", metavar="FILE.parquet", help="write the groups there in place of printing them")
    parser.add_argument("--min-cosine", type=positive_cosine, default=NEAR_COSINE, metavar="C", help=(
        "near: the lowest cosine of the largest faces; default: %(default)s"))
    parser.add_argument("--same-cosine", type=positive_cosine, default=SAME_COSINE, metavar="C", help=(
        "same_person: the lowest cosine of two faces; default: %(default)s. Relatives and people in uniform reach 0.5"))
    add_single_writer(parser)
    return parser


def say_read(done: int, parts: int) -> None:
    """How far the reading is."""
    say_progress(f"read {done:,} of {parts:,} parts")


def duplicates(arguments: argparse.Namespace) -> None:
    """Find the groups, and print or write them."""
    check_files((arguments.out, TABLE))
    output = open_output(arguments.output)
    started = time.monotonic()
    sources = [output.storage] if arguments.out else []
    with (
        making("duplicates", sources, single_writer=arguments.single_writer) as maker,
        Duplicates(output, arguments.same_cosine, arguments.min_cosine, say_read) as find,
    ):
        found = find()
        end_progress()
        write(arguments, maker, found)
    say(f"{find.images:,} images with {find.faces:,} faces, {time.monotonic() - started:.1f} s")
    for line in summary(found):
        say(line)


def write(arguments: argparse.Namespace, maker: Maker, found: pa.Table) -> None:
    """Write the groups to --out, or print them."""
    if arguments.out:
        groups = Derived("duplicates", arguments.out, arguments.again)
        say(f"Groups: {write_made(maker, groups, to_parquet(found))}")
        return
    lines = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    lines.writerow(found.column_names)
    shown = printable if sys.stdout.isatty() else str
    for row in found.to_pylist():
        row["cosine"] = f"{row['cosine']:.3f}"
        lines.writerow(["" if value is None else shown(str(value)) for value in row.values()])


def summary(found: pa.Table) -> list[str]:
    """A line for each kind of group."""
    lines = []
    for kind, what in zip(KINDS, ("equal files", "nearly equal photos", "one person twice in a photo"), strict=True):
        rows = found.filter(pc.equal(found["kind"], kind))
        groups = len(pc.unique(rows["group"]))
        members = f"{len(pc.unique(rows['uri'])):,} images"
        spare = ""
        if kind == "equal" and groups:
            firsts = rows.group_by("group").aggregate([("file_bytes", "max")])["file_bytes_max"]
            spare = f", {(pc.sum(rows['file_bytes']).as_py() - pc.sum(firsts).as_py()) / 1e6:,.1f} MB of copies"
        lines.append(f"{what}: {groups:,} groups of {members}{spare}")
    return lines


if __name__ == "__main__":
    run_process(main)
