"""The command line of `python -m jobs.cluster`."""

from __future__ import annotations

import argparse
import posixpath
import sys
import time
from contextlib import closing
from functools import partial

import numpy as np

from jobs.cluster.labels import Labels, read_labels
from jobs.command import end_progress, run_command, run_process, say, say_progress
from jobs.options import ArgumentError, add_single_writer, command_line, command_parser
from jobs.people.making import making
from jobs.people.options import positive_cosine
from jobs.people.subjects import Subjects
from pipeline.errors import OutputError
from pipeline.output import claim, ledger
from pipeline.output.derived import Derived, Maker
from pipeline.output.lease import new_run_id
from pipeline.people.agreement import agreement
from pipeline.people.gallery import CLEAR, Gallery, read_gallery
from pipeline.people.grouping import Grouping, group_faces
from pipeline.people.likeness import DEFAULT_FPR
from pipeline.people.linkage import PAIR_BY_LARGE, LinkThreshold
from pipeline.people.outputs import Output, open_output
from pipeline.people.tables import (
    Made,
    faces_table,
    files_of,
    keep_numbers,
    other_tables,
    people_table,
    read_made,
    read_tables,
)
from pipeline.storage import Storage
from pipeline.storage.scratch import ScratchFolder
from pipeline.storage.uris import parse_input_uri

DEFAULT_FOLDER = "people"

DESCRIPTION = """Find out who is who: put the faces of an output into groups that are of one person each.

    python -m jobs.cluster out/
    python -m jobs.cluster s3://bucket/faces --to s3://bucket/people
    python -m jobs.cluster out/ --labels names.csv        # columns uri, face_index, name

Two groups become one if the mean cosine of all pairs between them reaches a threshold, which falls with their sizes.
Two faces of one photo are never one person, unless --same-photo says so. Faces that are small, blurred or not aligned
make no groups; they join the group that they are like, or stay alone.

DIR gets two tables, and groups.json, which names them:
  faces-….parquet    uri, face_index, person, cosine_to_person, is_core; a row for every face
  people-….parquet   person, name, size, n_core, cohesion, nearest_person, nearest_cosine, best_uri, best_face_index;
                     the people that are most like another one first: they may be the same

Run it again when the output has grown: new faces join, and people keep their numbers. A number is never given twice.
With --labels, faces with one name are one person, and those with two names are two. The command also says how well the
groups agree with the names when it does not use them.

Exit codes: 0 done; 1 it broke; 2 wrong arguments, another run writes to OUTPUT, or vectors that cannot be compared; 130
and 143 interrupted. A run that is killed leaves the tables of the run before.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    arguments.again = command_line("cluster", argv)
    return run_command("cluster", partial(cluster, arguments), again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("cluster", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("--to", metavar="DIR", help=f"the folder of the tables; default: OUTPUT/{DEFAULT_FOLDER}")
    parser.add_argument("--min-cosine", type=positive_cosine, metavar="C", help=(
        "from which cosine on two single faces are one person; larger groups need less, down to "
        f"C / {PAIR_BY_LARGE}; default: {PAIR_BY_LARGE} times the embedder's threshold for a false positive rate of "
        f"{DEFAULT_FPR}, which is 0.447 for edgenext"))
    parser.add_argument("--labels", metavar="FILE", help=(
        "faces of known people: a .csv or .parquet file, on disk or in a bucket, with the columns uri, face_index and "
        "name"))
    parser.add_argument("--same-photo", action="store_true", help=(
        "two faces of one photo can be one person, as in collages and mirrors"))
    parser.add_argument("--weights", metavar="DIR|URI", help=(
        "the folder with the card of the embedder, for its threshold; default: models/weights of this repository"))
    add_single_writer(parser)
    return parser


def cluster(arguments: argparse.Namespace) -> None:
    """Group the faces of an output."""
    cluster_output(arguments, open_output(arguments.output))


def cluster_output(arguments: argparse.Namespace, output: Output) -> None:
    """Read the faces, group them, and write the tables."""
    threshold = threshold_of(arguments, output)
    with (
        making("cluster", [output.storage], single_writer=arguments.single_writer) as maker,
        closing(ScratchFolder()) as folder,
    ):
        started = time.monotonic()
        before = made_before(arguments, output, maker)       # grouping may take long: refuse now
        parts = ledger.committed_parts(output.storage)
        gallery = read_gallery(output.storage, parts, folder.path, CLEAR, partial(say_step, "read"))
        labels = read_labels(arguments.labels, gallery) if arguments.labels else Labels.none(gallery)
        group = partial(
            group_faces, gallery, folder.path, threshold, same_photo=arguments.same_photo, progress=say_step
        )
        if labels.names:
            say_agreement(group(names=Labels.none(gallery).numbers), labels)
        grouping = group(names=labels.numbers)
        end_progress()
        place, made = write(arguments, before, maker, gallery, grouping, labels)
        say(f"{in_words(made)}, {time.monotonic() - started:.1f} s")
        say(f"Tables: {posixpath.join(place, made.faces)} and {made.people}")


def threshold_of(arguments: argparse.Namespace, output: Output) -> LinkThreshold:
    """From when on two groups are one. Raises LikenessError for an embedder without a threshold."""
    if arguments.min_cosine is not None:
        return LinkThreshold.of_pair(arguments.min_cosine)
    return LinkThreshold.of_embedder(*Subjects([], {}, arguments.weights, output).thresholds())


def say_agreement(grouping: Grouping, labels: Labels) -> None:
    """Say how well groups that were made without the names agree with them."""
    known = labels.numbers >= 0
    end_progress()
    counts = ((labels.absent, "are no faces of the output"), (labels.unnamed, "have no name"))
    left_out = "".join(f"; {number:,} rows {what}" for number, what in counts if number)
    agreed = agreement(grouping.person[known], labels.numbers[known])
    say(f"{known.sum():,} faces of {len(set(labels.numbers[known].tolist())):,} people have names{left_out}. Groups "
        f"made without the names agree with them so: {agreed.words()}")


def made_before(arguments: argparse.Namespace, output: Output, maker: Maker) -> Made:
    """What an earlier run has left in the folder of the tables. Raises OutputError, ArgumentError."""
    storage, folder = maker.where(groups_folder(arguments))
    fingerprint = str((claim.begun_with(output.storage) or {})["fingerprint"])
    try:
        before = read_made(storage, folder) or Made("", fingerprint)
    except OSError as error:
        raise cannot_write(error) from None
    if before.output != fingerprint:
        raise OutputError(
            f"{posixpath.join(storage.root, folder)} has the people of another output. Give another folder with --to"
        )
    return before


def cannot_write(error: OSError) -> ArgumentError:
    """What to say of a folder that cannot be used."""
    return ArgumentError(f"the tables cannot be written: {error}; give another folder with --to")


def write(
    arguments: argparse.Namespace, before: Made, maker: Maker, gallery: Gallery, grouping: Grouping, labels: Labels
) -> tuple[str, Made]:
    """Write the tables. Returns the folder, and what groups.json says. Raises OutputError, ArgumentError."""
    thing = groups_folder(arguments)
    storage, folder = maker.where(thing)
    numbers = keep_numbers(grouping.person, persons_before(storage, folder, before, gallery), before.next_person)
    sizes = np.bincount(grouping.person, minlength=len(numbers))
    made = Made(
        new_run_id(), before.output, max(before.next_person, int(numbers.max(initial=0)) + 1),
        {"min_cosine": arguments.min_cosine, "same_photo": arguments.same_photo, "labels": len(labels.names)},
        {"faces": len(gallery), "people": len(numbers), "groups": int((sizes > 1).sum()),
         "in_groups": int(sizes[sizes > 1].sum()), "core_faces": int(grouping.is_core.sum())},
    )
    tables = faces_table(gallery, grouping, numbers), people_table(
        gallery, grouping, numbers, labels.of_people(grouping.person)
    )
    try:
        maker.write(thing, dict(files_of(made, *tables)))
        maker.delete(thing, other_tables(storage, folder, made))
    except OSError as error:
        raise cannot_write(error) from None
    return posixpath.join(storage.root, folder), made


def persons_before(storage: Storage, folder: str, before: Made, gallery: Gallery) -> np.ndarray:
    """The number of the person that each face was of in the tables that are there, (n,); −1 for a new face."""
    persons = np.full(len(gallery), -1, np.int64)
    if before.run_id:
        faces, _ = read_tables(storage, folder, before)
        rows = gallery.find(faces["uri"].combine_chunks(), faces["face_index"].to_numpy())
        persons[rows[rows >= 0]] = faces["person"].to_numpy()[rows >= 0]
    return persons


def groups_folder(arguments: argparse.Namespace) -> Derived:
    """The folder of the tables, for the record of OUTPUT."""
    given = arguments.to or arguments.output
    uri, _ = parse_input_uri(given)
    inner = "" if arguments.to else f"{DEFAULT_FOLDER}/"
    return Derived("groups", f"{uri.rstrip('/')}/{inner}{given[len(uri):]}", arguments.again)


def in_words(made: Made) -> str:
    """What was found."""
    counts = made.counts
    alone, unclear = counts["faces"] - counts["in_groups"], counts["faces"] - counts["core_faces"]
    return (
        f"{counts['faces']:,} faces: {counts['in_groups']:,} are of {counts['groups']:,} people with several, "
        f"{alone:,} are alone; {unclear:,} were too small, blurred or not aligned to make a group"
    )


def say_step(what: str, done: int, of: int) -> None:
    """How far a step is."""
    say_progress(f"{what} {done:,} of {of:,}")


if __name__ == "__main__":
    run_process(main)
