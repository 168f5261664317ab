"""The command line of `python -m jobs.search`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import end_progress, run_command, run_process, say, say_progress
from jobs.options import (
    DEFAULT_MODELS,
    DEVICES,
    ArgumentError,
    add_single_writer,
    command_line,
    command_parser,
    number,
    positive,
)
from jobs.people.files import PAGE, TABLE, check_files
from jobs.people.making import making, write_made
from jobs.people.options import add_model_options, rate
from jobs.people.subjects import Faces, Subjects
from jobs.search.probes import is_vectors, probes_in_file, probes_of
from pipeline.output import ledger
from pipeline.output.derived import Derived, Maker
from pipeline.people.index import FaceIndex, open_index, read_manifest, refuse_other_output
from pipeline.people.likeness import threshold_at
from pipeline.people.outputs import Output, open_output
from pipeline.people.search import MATCHES, Nearest, Probes, Search, nearest_in_block
from pipeline.text import printable

MAX_K = 100_000
HELD_MATCHES = 2_000_000      # of a group of probes: 50 MB
HELD_PROBES = 32_768          # 64 MB of vectors

DESCRIPTION = """Find the faces of an output that are most like those of a photo.

    python -m jobs.search out/ ann.jpg
    python -m jobs.search s3://bucket/faces ann.jpg bob.jpg --fpr 0.001 --out matches.parquet
    python -m jobs.search out/ 'out/#/photos/party.jpg#2' -k 100 --page matches.html
    python -m jobs.search out/ vectors.parquet --out matches.parquet

A PROBE is a photo (a path or a URI, as INPUT of jobs.extract), each of whose faces is looked for; a row of an output,
OUT#uri#face_index, where the last # is the index's and OUT is the shortest beginning that holds output.json; or a file
that ends in .parquet with vectors in the column `embedding`, or in its only column of lists. Photos are read in this
process, on the CPU, with the models and the settings of OUTPUT.

The search is exact: each probe is compared with every face of OUTPUT whose image is in images/, by the cosine of their
embeddings. A probe that is a row of OUTPUT does not find itself. --min-cosine and --fpr leave out what is less alike.
The threshold for a false positive rate is the cosine that this share of the pairs of two people reaches: among a
million faces of strangers 0.001 lets about a thousand pass.

The matches are printed, separated by tabs, or written to --out, with the columns probe, probe_face, rank, uri,
face_index, cosine. Of a Parquet file, probe is the file and probe_face the number of the row from 0; if the file has
the columns uri and face_index, these.

Exit codes: 0 done, also if nothing was found; 1 it broke; 2 wrong arguments, a photo that cannot be read or shows no
face, vectors of another embedder, or a rate that the embedder was not calibrated for; 130 and 143 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    arguments.again = command_line("search", argv, without=arguments.probes)      # their names tell who it is
    if arguments.exact and arguments.index is None:
        parser.error("--exact needs --index; a search without an index is exact")
    return run_command("search", partial(search, arguments), again="Run the same command again.")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("search", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="a folder or a bucket prefix that jobs.extract wrote")
    parser.add_argument("probes", nargs="+", metavar="PROBE", help=(
        "a photo, a row of an output (OUT#uri#face_index), or a .parquet file of vectors"))
    parser.add_argument("-k", type=matches, default=20, metavar="K", help=(
        "the most matches of each face; default: %(default)s"))
    least = parser.add_mutually_exclusive_group()
    least.add_argument("--min-cosine", type=cosine, metavar="C", help="leave out faces that are less alike")
    least.add_argument("--fpr", type=rate, metavar="RATE", help=(
        "leave out faces below the embedder's threshold at this false positive rate, one that it was calibrated for: "
        "0.001, 0.01, 0.05, 0.1 or 0.2 for the shipped ones"))
    parser.add_argument("--index", metavar="DIR", help=(
        "search the index that jobs.index made there: faster, but it may miss some faces"))
    parser.add_argument("--exact", action="store_true", help="with --index: miss none, and take longer")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help=(
        "where faces are compared without an index: a GPU helps from some hundred probes on; auto takes one if there "
        "is one; default: %(default)s"))
    parser.add_argument("--out", metavar="FILE.parquet", help="write the matches there in place of printing them")
    parser.add_argument("--page", metavar="FILE", help=(
        "write a page that shows the most alike faces of each probe, one HTML file"))
    add_model_options(parser)
    add_single_writer(parser)
    return parser


def matches(text: str) -> int:
    """A number of matches."""
    value = positive(text)
    if value > MAX_K:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_K:,}")
    return value


def cosine(text: str) -> float:
    """A cosine."""
    value = number(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from -1 to 1")
    return value


def search(arguments: argparse.Namespace) -> None:
    """Read the probes, search, and print or write the matches."""
    check_files((arguments.out, TABLE), (arguments.page, PAGE))
    output = open_output(arguments.output)
    named = [name for name in arguments.probes if not is_vectors(name)]
    names = {role: getattr(arguments, role) for role in DEFAULT_MODELS}
    subjects = Subjects(named, names, arguments.weights, output)
    least = least_cosine(arguments, subjects)
    nearest = nearest_on(arguments.device)
    sources = [source.storage for source in subjects.outputs] if arguments.out or arguments.page else []
    with making("search", sources, single_writer=arguments.single_writer) as maker:
        find = Search(output, arguments.k, least, say_searched, index_of(arguments, output), nearest)
        look(arguments, output, subjects, find, maker)


def nearest_on(device: str) -> Nearest:
    """What compares vectors on "auto", "cpu" or "cuda". Raises WeightsError for cuda when there is none."""
    if device == "cpu":
        return nearest_in_block           # without torch, which takes seconds to import
    from models.device import torch_device
    from models.device_nearest import DeviceNearest

    found = torch_device(device)
    return nearest_in_block if found.type == "cpu" else DeviceNearest(found)


def look(arguments: argparse.Namespace, output: Output, subjects: Subjects, find: Search, maker: Maker) -> None:
    """Search for the faces, and print or write the matches."""
    faces = subjects.read(pictures=bool(arguments.page))
    started, probes, found = time.monotonic(), 0, 0
    shown = MATCHES.empty_table()
    with Matches(maker, matches_file(arguments) if arguments.out else None) as write:
        for group in groups_of_probes(arguments, subjects, faces, output):
            table = find(group)
            write(table)
            probes, found = probes + len(group), found + len(table)
            shown = table if not shown.num_rows else shown
    end_progress()
    if not probes:
        raise ArgumentError("there is nothing to look for: the files of vectors are empty")
    say(f"{found:,} matches of {probes:,} probes among {find.faces:,} faces, {time.monotonic() - started:.1f} s")
    if arguments.page:
        from jobs.search.page import make_page

        content = make_page(output, faces, shown)
        say(f"Page: {write_made(maker, page_file(arguments), content)}")


def index_of(arguments: argparse.Namespace, output: Output) -> FaceIndex | None:
    """The index of --index, and a line about what it lacks. Raises ArgumentError, OutputError."""
    if arguments.index is None:
        return None
    storage = open_index(arguments.index)
    manifest = read_manifest(storage)
    if manifest is None:
        raise ArgumentError(f"there is no index in {storage.root}: jobs.index makes one")
    parts = ledger.committed_parts(output.storage)
    refuse_other_output(storage, manifest, output, parts)
    index = FaceIndex(storage, manifest, exact=arguments.exact)
    if lacking := set(parts) - index.covers(parts)[0]:
        say(
            f"the index lacks {len(lacking):,} of {len(parts):,} parts, which are read from OUTPUT; "
            f"`{command_line('index', [arguments.output, arguments.index])}` adds them"
        )
    return index


def matches_file(arguments: argparse.Namespace) -> Derived:
    """The file of --out, for the record of OUTPUT."""
    return Derived("matches", arguments.out, arguments.again, rows_only=False)


def page_file(arguments: argparse.Namespace) -> Derived:
    """The page, as matches_file."""
    return Derived("page", arguments.page, arguments.again, rows_only=False)


def least_cosine(arguments: argparse.Namespace, subjects: Subjects) -> float:
    """The cosine below which faces are no match. Raises LikenessError for a rate without a threshold."""
    if arguments.fpr is not None:
        thresholds, embedder = subjects.thresholds()
        return threshold_at(thresholds, arguments.fpr, embedder).cosine
    return -1.0 if arguments.min_cosine is None else float(arguments.min_cosine)


def groups_of_probes(
    arguments: argparse.Namespace, subjects: Subjects, faces: Faces, output: Output
) -> Iterator[Probes]:
    """All probes, so many at a time that their matches fit in memory: of photos and rows first, then of files."""
    group = max(1, min(HELD_PROBES, HELD_MATCHES // arguments.k))
    everyone = probes_of(faces, subjects.places, output)
    for start in range(0, len(everyone), group):
        yield everyone.part(start, start + group)
    for name in filter(is_vectors, arguments.probes):
        yield from probes_in_file(name, output, group)


class Matches:
    """Where matches go: to a Parquet file, or to stdout. The file is written at the end, whole or not at all."""

    def __init__(self, maker: Maker, file: Derived | None) -> None:
        self._maker, self._out = maker, file
        self._buffer = io.BytesIO()

    def __enter__(self) -> Matches:
        if self._out:
            self._file = pq.ParquetWriter(self._buffer, MATCHES, compression="zstd")
        else:
            self._lines = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
            self._lines.writerow(MATCHES.names)
        return self

    def __call__(self, table: pa.Table) -> None:
        """Take some matches."""
        if self._out:
            self._file.write_table(table)
            return
        shown = printable if sys.stdout.isatty() else str
        for row in table.to_pylist():
            self._lines.writerow([
                shown(row["probe"]), row["probe_face"], row["rank"], shown(row["uri"]), row["face_index"],
                f"{row['cosine']:.4f}",
            ])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._out:
            self._file.close()
            if kind is None:
                say(f"Matches: {write_made(self._maker, self._out, self._buffer.getvalue())}")


def say_searched(done: int, parts: int) -> None:
    """How far the search is."""
    say_progress(f"searched {done:,} of {parts:,} parts")


if __name__ == "__main__":
    run_process(main)
