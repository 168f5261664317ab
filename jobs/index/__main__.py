"""The command line of `python -m jobs.index`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from functools import partial

from jobs.command import end_progress, run_command, run_process, say, say_progress
from jobs.options import ArgumentError, add_single_writer, command_line, command_parser
from jobs.people.making import making
from pipeline.output.derived import Derived, Maker, as_folder
from pipeline.people.index import INDEX_JSON, open_index, read_manifest
from pipeline.people.index_build import Built, build_index, files_of
from pipeline.people.outputs import Output, open_output
from pipeline.storage import Storage

OURS = re.compile(rf"[0-9a-f]{{16}}\.(high|low|pq)|{re.escape(INDEX_JSON)}")

DESCRIPTION = """Make an index of the faces of an output, or update it when the output has grown.

    python -m jobs.index out/ out/index
    python -m jobs.index s3://bucket/faces /data/faces-index
    python -m jobs.search out/ ann.jpg --index out/index

The index is a folder. It has 16-bit codes of all embeddings, 1 KB a face, with which `jobs.search --index DIR --exact`
finds what the search without an index finds, by reading a quarter as much. From 100,000 faces on it also has codes of a
product quantiser (faiss), 128 bytes a face: `jobs.search --index DIR` finds nearly all of that, in less time.
How much is measured: recall_at_20 in DIR/index.json is the share of the 20 most alike faces that are found.

Run the same command again when OUTPUT has grown: it adds the new parts, and makes those anew that were rewritten. Until
then jobs.search reads from OUTPUT what the index lacks, and never finds what was erased. jobs.erase deletes the index,
because it has vectors of the erased faces; this command makes it again.

DIR on a disk of this machine is fastest. Exit codes: 0 done; 1 it broke, and the index is as it was before; 2 wrong
arguments, another run writes to OUTPUT, or DIR is not an index of OUTPUT; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    arguments.again = command_line("index", argv)
    return run_command("index", partial(index, arguments), again="The index is as before. Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("index", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("dir", metavar="DIR", help="the folder of the index, on a disk or in a bucket")
    add_single_writer(parser)
    return parser


def index(arguments: argparse.Namespace) -> None:
    """Make or update the index, and say what it is."""
    started = time.monotonic()
    output = open_output(arguments.output)
    storage = open_index(arguments.dir)
    thing = Derived("index", as_folder(arguments.dir), arguments.again)
    with making("index", [output.storage], single_writer=arguments.single_writer) as maker:
        maker.check(thing)
        try:
            refuse_foreign(storage)
            built = build(output, storage, thing, maker)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise ArgumentError(f"cannot write {arguments.dir}: {error}; choose another folder") from None
    for line in summary(storage, built, time.monotonic() - started):
        say(line)


def build(output: Output, storage: Storage, thing: Derived, maker: Maker) -> Built:
    """Make the index, and delete the files that it needs no more."""
    try:
        built = build_index(output, storage, read_manifest(storage), partial(maker.write, thing), say_indexed)
    finally:
        end_progress()
    stale = sorted({file.path for file in storage.list("") if OURS.fullmatch(file.path)} - files_of(built.manifest))
    if stale:
        maker.delete(thing, stale)
    return built


def refuse_foreign(storage: Storage) -> None:
    """Raises ArgumentError if the folder holds something else than an index."""
    foreign = [file.path for file in storage.list("") if not OURS.fullmatch(file.path)]
    if foreign:
        raise ArgumentError(
            f"{storage.root} holds {foreign[0]}, which is no file of an index: give a folder of its own"
        )


def summary(storage: Storage, built: Built, seconds: float) -> Sequence[str]:
    """What was done, in lines."""
    found = built.manifest
    kind = "product quantiser and 16-bit codes" if found.trained_on else "16-bit codes"
    recall = f", recall at 20: {found.recall_at_20:.3f}" if found.recall_at_20 is not None else ""
    lines = [
        f"{storage.root} has {found.faces:,} faces of {len(found.parts):,} parts: {kind}{recall}; segments: "
        f"{built.made:,} new, {built.kept:,} kept, {built.dropped:,} dropped; {seconds:.1f} s"
    ]
    if built.note:
        lines.append(built.note)
    if built.left_out:
        lines.append(
            f"{len(built.left_out):,} parts have vectors that are not numbers, or faces that do not count: they "
            "are not in the index, and jobs.search reads them from OUTPUT"
        )
    return lines


def say_indexed(done: int, faces: int) -> None:
    """How far the index is."""
    say_progress(f"indexed {done:,} of {faces:,} faces")


if __name__ == "__main__":
    run_process(main)
