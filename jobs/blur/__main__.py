"""The command line of `python -m jobs.blur`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.blur.choice import Choice, read_choice, refuse_unknown
from jobs.blur.copier import Copier
from jobs.blur.faces import known_faces, with_faces
from jobs.blur.hide import CELLS, MARGIN, MIN_CELL_PX, How
from jobs.blur.look import SecondLook
from jobs.blur.places import Places, open_places, refuse_used, root_of
from jobs.blur.table import COPIES, FOLDER, SETTLED, TABLE, CopyTable, Outcome, Row
from jobs.blur.work import RECORD_COLUMNS, Counts, Work
from jobs.command import TOO_MANY_ERRORS, run_command, run_process, say
from jobs.options import ArgumentError, add_single_writer, command_parser, program, resuming_command
from jobs.people.face_files import HELP
from pipeline.batch import Fetched
from pipeline.input.fetch import Fetch
from pipeline.input.listing import InputKind, list_inputs
from pipeline.input.names import uri_extension
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules
from pipeline.output import claim, ledger
from pipeline.output.lease import new_run_id
from pipeline.people.likeness import DEFAULT_FPR, threshold_at
from pipeline.people.outputs import Output, open_output
from pipeline.run.progress import Progress
from pipeline.stages.pillow import prepare_pillow

_SHOWN_REASONS = 10
FETCHED_TOGETHER = 500
WAITING_BYTES = 256 << 20  # of files that wait for a thread, or one larger file
NOTED_ROWS = 100           # a run that is killed makes at most so many copies again, and those in hand

DESCRIPTION = f"""Copy images with their faces made unrecognisable.

    python -m jobs.blur photos/ out/ public/
    python -m jobs.blur s3://bucket/photos s3://bucket/faces s3://bucket/public --how pixelate
    python -m jobs.blur photos/ out/ public/ --but agreed.csv

OUTPUT is what jobs.extract made of IMAGES; its boxes are hidden. The copies have the names of the images, below IMAGES.
A member of an archive goes into a folder with the archive's name. Only images with the status ok or no_face are copied.
Those that changed since OUTPUT was made are not, by their sha256, nor those of which a copy would lose something, and
animations and files with pages, because jobs.extract reads the first frame alone. All are counted, by reason.

A box is hidden with {MARGIN:.0%} of its longer side around it. --how blur (the default) and pixelate leave {CELLS}
colours along the longer side of a face, fewer for faces below {CELLS * MIN_CELL_PX} px. All else is gone, so nothing
can undo it. fill makes it black.

A copy has the format, the orientation and, for JPEG, the quality of its image. Images without a hidden face keep every
pixel of a JPEG or WebP. Of the metadata only orientation, colour profile and resolution are kept: no location, time,
camera or comment, and no embedded preview, because it shows the face.

Then the copies are read again as jobs.extract does: the detector looks for faces, and the embedder compares what it
finds in a hidden place with the faces of OUTPUT. DEST/{FOLDER}/{TABLE} has a row for every image, with the counts. It
names the images, so do not publish it.

Stop it at any time; the same command goes on. Exit codes: 0 done; 1 it broke and can be continued; 2 wrong arguments,
DEST overlaps IMAGES or OUTPUT or was not empty, or was begun with other settings; 3 some images could not be read or
written: the same command tries them again; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    again = f"The same command goes on: {resuming_command('blur', argv)}"
    return run_command("blur", partial(blur, arguments), again=again)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("blur", DESCRIPTION)
    parser.add_argument("images", metavar="IMAGES", help="a folder, a bucket prefix, an archive or a file")
    parser.add_argument("output", metavar="OUTPUT", help="what jobs.extract wrote for them")
    parser.add_argument("dest", metavar="DEST", help="a new folder or bucket prefix for the copies")
    parser.add_argument("--how", choices=[str(how) for how in How], default=str(How.BLUR), help=(
        "what faces become; default: %(default)s"))
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--only", metavar="FILE", help=f"hide only the faces in FILE: {HELP}")
    whom.add_argument("--but", metavar="FILE", help="hide all faces but those in FILE, such as of people who agreed")
    parser.add_argument("--no-second-look", action="store_true", help=(
        "do not look for faces in the copies; two to four times as fast"))
    parser.add_argument("--weights", metavar="DIR|URI", help=(
        "the folder of the weights that made OUTPUT, for the second look; default: models/weights of this repository"))
    add_single_writer(parser)
    return parser


def blur(arguments: argparse.Namespace) -> int:
    """Copy the images. Returns the exit code."""
    prepare_pillow()
    how = How(arguments.how)
    output = open_output(arguments.output)
    places = open_places(arguments.images, output.storage, arguments.dest, single_writer=arguments.single_writer)
    choice = read_choice(arguments.only, arguments.but)
    refuse_unknown(choice, known_faces(output.storage, choice))
    look = None if arguments.no_second_look else second_look(output, arguments.weights)
    table = CopyTable(places.notes)
    refuse_used(places, begun=table.begun_with() is not None)
    run_id = new_run_id()
    with claim.take_lease(places.notes, run_id, program("blur"), say), Work() as work:
        settings = settings_of(output, places, how, choice)
        table.check(settings)
        root, counts = find_work(work, output, places, table)
        table.begin(settings)      # not before: IMAGES may be mistyped
        places.dest.clean_temporary(deep=True)
        say_work(counts)
        numbered = bool(output.parquet and output.parquet["uri"] is None)
        copier = Copier(
            places.dest, root, how, choice, output.settings.max_pixels, look, numbered=numbered
        )
        copy_all(work, counts.to_do, output, places, choice, copier, Notes(table, work, run_id))
        copies = work.copies()
        table.finish(copies)
    return say_outcome(copies, counts, places, looked=look is not None)


def second_look(output: Output, weights: str | None) -> SecondLook:
    """What looks for faces in the copies: with the models of the output, also small faces, and all of them."""
    from jobs.people.photos import PhotoReader, find_models
    from jobs.people.subjects import weights_folder

    folder = weights_folder(weights)
    models = find_models(folder, output.models)
    settings = replace(output.settings, min_face_px=0.0, max_faces=None)
    threshold = threshold_at(models.embedder.thresholds, DEFAULT_FPR, models.embedder.name)
    return SecondLook(PhotoReader(settings, models, folder).faces_of, settings, threshold.cosine)


def settings_of(output: Output, places: Places, how: How, choice: Choice) -> dict[str, Any]:
    """What all copies in DEST must have in common."""
    begun = claim.begun_with(output.storage) or {}
    return {
        "images": places.images, "output": begun.get("fingerprint"), "how": str(how), "faces": choice.digest,
        "margin": MARGIN, "cells": CELLS,
    }


def find_work(work: Work, output: Output, places: Places, table: CopyTable) -> tuple[str, Counts]:
    """What the uris of IMAGES begin with, and how much is to do. Raises ArgumentError, InputError."""
    if output.parquet is None and uri_extension(places.images) == "parquet":
        raise no_column(f"IMAGES ({places.images}) is a Parquet file", output)
    root, kind = list_images(work, output, places)
    for rows in ledger.scan_ledger(output.storage, RECORD_COLUMNS):
        work.add_records(rows)
    for rows in table.settled():
        work.add_copies(rows)
    if output.parquet is None and (row := work.row_of_parquet()):
        raise no_column(f"{row} is a row of a Parquet file", output)
    counts = work.compute(root if kind in (InputKind.FOLDER, InputKind.PREFIX) else "")
    if twice := work.two_of_one_name():
        raise ArgumentError(f"the copy of {twice} would have the name of a member of an archive; rename one of them")
    return root, counts


def list_images(work: Work, output: Output, places: Places) -> tuple[str, InputKind]:
    """List IMAGES. Returns what their uris begin with, and what IMAGES is. Raises ArgumentError, InputError."""
    parquet = ParquetColumns(**output.parquet) if output.parquet else None
    rules = Rules(output.storage.root, all_files=True, parquet=parquet, options=places.options)
    listing = list_inputs([places.images], work.add_listing, rules)
    for warning in listing.warnings:
        say(warning)
    (kind,) = listing.kinds
    return root_of(places.images, kind), kind


def no_column(what: str, output: Output) -> ArgumentError:
    """The refusal of Parquet files of whose images the column is not known."""
    return ArgumentError(
        f"{what}, but {output.storage.root}/{claim.RUN_JSON} does not say which column holds images. Run jobs.extract "
        "with --image-column to its end first; if the file is a list of images, give their folder"
    )


def copy_all(
    work: Work, to_do: int, output: Output, places: Places, choice: Choice, copier: Copier, note: Notes
) -> None:
    """Fetch and copy what is to do, with threads; the files of a few images are held."""
    column = output.parquet["image"] if output.parquet else None
    fetch = Fetch(places.options, image_column=column)
    progress = Progress("images", describe, to_do)
    n_threads = max(4, os.cpu_count() or 1)           # writing to a bucket is mostly waiting
    waiting: deque[tuple[int, Future[Row]]] = deque()      # with the bytes of their files

    def settle() -> None:
        row = waiting.popleft()[1].result()
        note(row)
        progress.add(1, {"faces hidden": row["hidden"], str(row["outcome"]): 1})

    with ThreadPoolExecutor(n_threads, "blur") as threads, note:
        try:
            images = with_faces(output.storage, work.images(), choice)
            while group := list(islice(images, FETCHED_TOGETHER)):
                answers = fetch([image.row for image, _ in group])
                for (image, faces), answer in zip(group, answers, strict=True):
                    n_bytes = len(answer.content) if isinstance(answer, Fetched) else 0
                    waiting.append((n_bytes, threads.submit(copier, image, faces, answer)))
                    while len(waiting) > n_threads or sum(n_bytes for n_bytes, _ in waiting) > WAITING_BYTES:
                        settle()
            while waiting:
                settle()
        finally:
            threads.shutdown(cancel_futures=True)
            progress.close()


class Notes:
    """Notes what became of images, in groups. A context manager that writes the last group."""

    def __init__(self, table: CopyTable, work: Work, run_id: str) -> None:
        self._table, self._work, self._run_id = table, work, run_id
        self._rows: list[Row] = []
        self._groups = 0

    def __enter__(self) -> Notes:
        return self

    def __call__(self, row: Row) -> None:
        """Note one image, whose copy is written."""
        self._rows.append(row)
        if len(self._rows) >= NOTED_ROWS:
            self._write()

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._write()

    def _write(self) -> None:
        self._work.add_copies(pa.Table.from_pylist([dict(row) for row in self._rows], schema=COPIES))
        if settled := [row for row in self._rows if row["outcome"] in SETTLED]:
            self._table.add(self._run_id, self._groups, settled)
        self._rows, self._groups = [], self._groups + 1


def describe(counts: Mapping[str, int]) -> str:
    """The end of the line of progress."""
    return f"{counts['faces hidden']:,} faces hidden  {counts[Outcome.FAILED]:,} failed"


def say_work(counts: Counts) -> None:
    """What is to do, and what is left out."""
    say(f"{counts.to_do:,} images to copy; {counts.done:,} done before")
    for number, what in (
        *((number, f"with the status {status} in OUTPUT") for status, number in counts.others.items()),
        (counts.unknown, "not in OUTPUT: run jobs.extract for them first"),
        (counts.gone, "in OUTPUT but not in IMAGES any more"),
    ):
        if number:
            say(f"not copied: {number:,} {what}")


def say_outcome(copies: pa.Table, counts: Counts, places: Places, *, looked: bool) -> int:
    """The summary of DEST. Returns the exit code."""
    rows = copies.select(["outcome", "reason"]).to_pylist()
    outcomes = Counter(row["outcome"] for row in rows)
    for (reason, number) in Counter(row["reason"] for row in rows if row["reason"]).most_common(_SHOWN_REASONS):
        say(f"not copied: {number:,} {reason}")

    def total(name: str) -> int:
        return pc.sum(copies[name]).as_py() or 0

    say(f"{outcomes[Outcome.COPIED]:,} copies with {total('hidden'):,} hidden faces in {places.dest.root}")
    if looked:
        say(
            f"second look: {total('still_found'):,} hidden faces are still found as faces, "
            f"{total('still_recognised'):,} recognised; {total('not_in_output'):,} faces are found that OUTPUT has not"
        )
    say(f"a row for every image: {places.notes.root}/{TABLE}")
    return TOO_MANY_ERRORS if outcomes[Outcome.FAILED] else 0


if __name__ == "__main__":
    run_process(main)
