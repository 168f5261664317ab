"""List a bucket once, with parallel requests, into Parquet that `jobs.extract` reads as INPUT."""

from __future__ import annotations

import argparse
import secrets
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa

from jobs.command import Broke, run_command, run_process, say
from jobs.options import (
    ArgumentError,
    add_choosing_options,
    add_single_writer,
    command_parser,
    positive,
    resuming_command,
)
from pipeline.input import manifest_folder
from pipeline.input.buckets import bucket_stretches, existing_key, folder_key, list_objects
from pipeline.input.inventory import inventory_stretches, is_inventory, read_inventory
from pipeline.input.listing import list_inputs
from pipeline.input.manifest_folder import Coverage, ManifestError, ManifestState, PartWriter
from pipeline.input.names import InputError, literal_beginning
from pipeline.input.rows import Span, Stretch
from pipeline.input.rules import Rules
from pipeline.output import overwrite
from pipeline.output.lease import Lease, check_held
from pipeline.run.interrupt import Interrupted
from pipeline.run.progress import Progress
from pipeline.schemas import LISTING
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import BUCKET_SCHEMES, absolute, is_local, local_path, parse_input_uri, split_uri, uri_scheme
from pipeline.text import printable

# S3 takes about 0.1 s to answer. Reading an answer takes 0.02 s of a core, so about six threads keep a core busy.
THREADS = 16

DESCRIPTION = """List a bucket once, with parallel requests, into Parquet that jobs.extract reads as INPUT.

    python -m jobs.manifest s3://bucket/photos/ photos.parquet
    python -m jobs.manifest s3://bucket/ s3://bucket/lists/all.parquet --threads 32
    python -m jobs.manifest s3://inventories/bucket/daily/2026-11-06T01-00Z/manifest.json photos.parquet
    python -m jobs.extract photos.parquet out/

OUT.parquet becomes a folder of parts with the columns uri, container, offset, size, etag, mtime. Any tool can read
OUT.parquet/*.parquet. To resume a killed listing, run the same command again (a local folder is listed from its start).
The manifest has the names that jobs.extract reads in a folder: names with an image extension or none, and tars, but no
hidden names and none that systems make, such as thumbnails.

Exit codes: 0 done, also if it was done before; 1 it broke and can be resumed; 2 wrong arguments or environment;
130 and 143 interrupted.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What is listed.

    list_spans: lists the names in these spans, and passes them on piece by piece. revision: see ManifestState.
    has_order: whether the names come in order, so that a listing can be resumed.
    """

    name: str
    list_spans: Callable[[list[Span], Callable[[Stretch], None]], None]
    revision: str = ""
    has_order: bool = True


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argument_parser().parse_args(argv)
    command = resuming_command("manifest", argv)
    return run_command(
        "manifest", partial(write_manifest, arguments, command),
        again=f"Listed names are kept. To resume, run: {command}",
    )


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("manifest", DESCRIPTION)
    parser.add_argument("bucket", metavar="BUCKET", help=(
        "s3://bucket/prefix or gs://bucket/prefix, with an endpoint as in jobs.extract; the manifest.json of an S3 "
        "Inventory in Parquet or CSV; or a local folder"))
    parser.add_argument("out", metavar="OUT.parquet", help=(
        "a local folder or a bucket prefix, made if needed. Its name must end in .parquet"))
    parser.add_argument("--all-files", action="store_true", help=(
        "list hidden names, names that systems make (thumbnails, bins, backups), and every extension too"))
    add_choosing_options(parser)
    parser.add_argument("--threads", type=positive, default=THREADS, metavar="N", help=(
        "parallel requests. An inventory is read with fewer; default: %(default)s"))
    parser.add_argument("--overwrite", action="store_true", help="delete OUT.parquet and list again")
    add_single_writer(parser)
    return parser


def write_manifest(arguments: argparse.Namespace, command: str) -> None:
    """List what is not listed yet."""
    storage = open_out(arguments.out, arguments.single_writer)
    source = open_source(arguments, storage)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    with take_lease(storage, run_id, command):
        storage.clean_temporary()
        wanted = ManifestState(
            source.name, source.revision, arguments.all_files, command,
            exclude=tuple(arguments.exclude), include=tuple(arguments.include),
        )
        deletes = arguments.overwrite and not overwrite.goes_on(storage, overwrite.name_of([command]))
        state = manifest_folder.claim(storage, wanted, overwrite=deletes)
        if deletes:
            overwrite.begin(storage, overwrite.name_of([command]))
        if state.finished:
            say(f"{storage.root} is finished since {state.finished}: {state.rows:,} images; --overwrite lists again")
            return
        if not source.has_order:
            state = manifest_folder.claim(storage, wanted, overwrite=True)
        held = list_missing(source, storage, state, run_id)
        check_held(storage, run_id)
        manifest_folder.write_state(storage, manifest_folder.finish(state, held))
        overwrite.end(storage)
    report_end(storage, held)


def open_out(out: str, single_writer: bool) -> Storage:
    """OUT.parquet. Raises ArgumentError if it cannot be the folder of a manifest."""
    uri, options = parse_input_uri(out)
    uri = uri.rstrip("/")
    if not uri.endswith(".parquet"):
        raise ArgumentError(f"name it {uri}.parquet: jobs.extract recognises a manifest by the end of its name")
    storage = open_storage(uri, options, single_writer=single_writer)
    if Path(storage.root).is_file():
        raise ArgumentError(f"{storage.root} is a file, but a manifest is a folder of parts: choose another name")
    return storage


def list_missing(source: Source, storage: Storage, state: ManifestState, run_id: str) -> Coverage:
    """List what the parts do not have yet. Returns what they have then. Raises Broke if that is not everything."""
    held = manifest_folder.read_coverage(storage, state.id)
    if held.seen:
        say(f"resuming after {held.seen:,} names in {held.parts:,} parts")
    if held.gaps:
        try:
            list_gaps(source, held.gaps, PartWriter(storage, state.id, partial(check_held, storage, run_id)))
        except InputError:
            if not held.parts:
                storage.delete(manifest_folder.MANIFEST_JSON)    # there is nothing to resume
            raise
        held = manifest_folder.read_coverage(storage, state.id)  # read from the parts, to check them
    if held.gaps:
        raise Broke(f"{len(held.gaps):,} ranges of names are missing from the parts")
    return held


def report_end(storage: Storage, held: Coverage) -> None:
    """Print what the manifest has."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(held.skipped.items()))
    say(f"{held.rows:,} images of {held.seen:,} names in {held.parts:,} parts of {storage.root}"
        + (f"; left out: {left_out}" if left_out else ""))
    if not held.rows:
        say("there are no images in it; --all-files takes hidden names, those of other programs and every extension")


def open_source(arguments: argparse.Namespace, storage: Storage) -> Source:
    """What BUCKET names. Raises InputError if it cannot be listed or is empty."""
    uri, options = parse_input_uri(arguments.bucket)
    rules = Rules(
        storage.root, arguments.all_files, options=options,
        exclude=tuple(arguments.exclude), include=tuple(arguments.include),
    )
    scheme = uri_scheme(uri)
    if is_inventory(uri):
        return inventory_source(uri, rules)
    if scheme in BUCKET_SCHEMES:
        return bucket_source(uri, rules, arguments.threads)
    if is_local(uri):
        return folder_source(uri, rules)
    raise InputError(f"{uri} is no bucket: give s3://bucket/prefix, gs://bucket/prefix or a local folder")


def bucket_source(uri: str, rules: Rules, threads: int) -> Source:
    """A prefix of a bucket. It means a folder: `photos` lists `photos/`."""
    bucket_uri, key = split_uri(uri)
    folder = folder_key(key)
    if next(list_objects(bucket_uri, folder, rules.options), None) is None:
        beginning, rest = existing_key(bucket_uri, key, rules.options)
        if rest or beginning == key:
            raise InputError(nothing_in(f"{bucket_uri}/{key}", f"{bucket_uri}/{beginning}", rest))
        folder = folder_key(beginning)     # it is there in another Unicode form
    skips = rules.key_rule(bucket_uri, folder)

    def list_spans(spans: list[Span], add: Callable[[Stretch], None]) -> None:
        for stretch in bucket_stretches(bucket_uri, folder, rules.options, skips, spans, threads):
            add(stretch)

    return Source(f"{bucket_uri}/{folder}", list_spans)


def nothing_in(uri: str, beginning: str, rest: str) -> str:
    """The message for a prefix that no key has; a glob can be given otherwise."""
    if literal_beginning(rest) is None:
        return f"nothing is in {uri}: check the prefix, which is read as a folder"
    return (
        f"nothing is in {uri}: it is read as a folder, not as a glob; give {shlex.quote(beginning)} and "
        f"--include {shlex.quote(rest)}"
    )


def inventory_source(uri: str, rules: Rules) -> Source:
    """An S3 Inventory, named by its manifest.json."""
    inventory = read_inventory(uri, rules.options)
    skips = rules.key_rule(f"s3://{inventory.bucket}", "")

    def list_spans(spans: list[Span], add: Callable[[Stretch], None]) -> None:
        for stretch in inventory_stretches(inventory, rules.options, skips, spans):
            add(stretch)

    return Source(uri, list_spans, inventory.revision)


def folder_source(uri: str, rules: Rules) -> Source:
    """A local folder, glob or file, as jobs.extract lists it. It is listed in no order, within seconds."""

    def list_spans(_: list[Span], add: Callable[[Stretch], None]) -> None:
        after = ""

        def add_table(table: pa.Table) -> None:
            nonlocal after
            until = f"{int(after or 0) + 1:012}"
            add(Stretch((after, until), table, len(table), {}))
            after = until

        found = list_inputs([uri], add_table, rules)
        for warning in found.warnings:
            say(printable(warning))
        add(Stretch((after, None), LISTING.empty_table(), sum(found.skipped.values()), found.skipped))

    return Source(absolute(local_path(uri)), list_spans, has_order=False)


def take_lease(storage: Storage, run_id: str, command: str) -> Lease:
    """Take the lease of OUT.parquet. Raises LeaseHeld, or ManifestError if nothing can be written there."""
    try:
        return Lease.acquire(storage, run_id, command=command, say=say)
    except OSError as error:
        raise ManifestError(f"OUT.parquet cannot be written: {error}") from None


def list_gaps(source: Source, gaps: list[Span], writer: PartWriter) -> None:
    """List the names in the gaps and write them. If the connection breaks or a signal comes, write what is listed."""
    progress = Progress("names", lambda counts: f"{counts['images']:,} images")

    def add(stretch: Stretch) -> None:
        writer.add(stretch)
        progress.add(stretch.seen, {"images": len(stretch.rows)})

    try:
        source.list_spans(gaps, add)
    except InputError as error:
        if not progress.done:
            raise
        writer.flush()
        raise Broke(str(error)) from error
    except Interrupted:
        writer.flush()
        raise
    finally:
        progress.close()
    writer.flush()


if __name__ == "__main__":
    run_process(main)
