"""List a bucket once, in parallel, into Parquet that `jobs.extract` takes as INPUT. See --help."""

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

from jobs.command import Broke, run_command, say
from jobs.options import ArgumentError, command_parser, positive, program
from pipeline.input import manifest_folder
from pipeline.input.buckets import bucket_stretches, folder_key, list_objects
from pipeline.input.inventory import inventory_stretches, is_inventory, read_inventory
from pipeline.input.listing import list_inputs
from pipeline.input.manifest_folder import ManifestError, ManifestState, PartWriter
from pipeline.input.names import InputError
from pipeline.input.rows import Span, Stretch
from pipeline.input.rules import Rules
from pipeline.output.lease import Lease, check_held
from pipeline.run.interrupt import Interrupted, leave
from pipeline.run.progress import Progress
from pipeline.schemas import LISTING
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import BUCKET_SCHEMES, absolute, is_local, local_path, parse_input_uri, split_uri, uri_scheme
from pipeline.text import printable

THREADS = 16   # an answer of S3 takes about 0.1 s, and to read it 0.02 s of one core: six are enough for one core

DESCRIPTION = """List a bucket once, in parallel, into Parquet that jobs.extract takes as INPUT.

    python -m jobs.manifest s3://bucket/photos/ photos.parquet
    python -m jobs.manifest s3://bucket/ s3://bucket/lists/all.parquet --threads 32
    python -m jobs.manifest s3://inventories/bucket/daily/2026-11-06T01-00Z/manifest.json photos.parquet
    python -m jobs.extract photos.parquet out/

OUT.parquet becomes a folder of parts with the columns uri, container, offset, size, etag, mtime; any tool reads
OUT.parquet/*.parquet. The same command goes on where a killed one stopped (a local folder is listed anew). Names are
chosen as jobs.extract does in a folder: those with an image extension or none, and tars; nothing hidden.

Exit codes: 0 done, also when it was done before; 1 it broke and can be gone on with; 2 wrong arguments or environment;
130 and 143 interrupted.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """What is listed."""

    name: str
    list_spans: Callable[[list[Span], Callable[[Stretch], None]], None]    # hands on all that lies in these spans
    revision: str = ""                                                     # see manifest_folder.ManifestState
    has_order: bool = True                                                 # so that a listing can be gone on with


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv)
    command = f"{program('manifest')} {shlex.join(word for word in argv if word != '--overwrite')}"
    return run_command(
        "manifest", partial(write_manifest, arguments, command),
        again=f"Listed names are kept. To resume, run: {command}",
    )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser("manifest", DESCRIPTION)
    parser.add_argument("bucket", metavar="BUCKET", help=(
        "s3://bucket/prefix or gs://bucket/prefix, where an endpoint may follow as in jobs.extract; the manifest.json "
        "of an S3 Inventory, whose files are Parquet or CSV; or a local folder"))
    parser.add_argument("out", metavar="OUT.parquet", help="a local folder or a bucket prefix; the name ends so")
    parser.add_argument("--all-files", action="store_true",
                        help="take hidden names and every extension")
    parser.add_argument("--threads", type=positive, default=THREADS, metavar="N",
                        help="requests at one time; default: %(default)s. An inventory is read by fewer")
    parser.add_argument("--overwrite", action="store_true", help="list anew what OUT.parquet holds")
    return parser.parse_args(argv)


def write_manifest(arguments: argparse.Namespace, command: str) -> None:
    """List what is not listed yet."""
    out_uri, out_options = parse_input_uri(arguments.out)
    out_uri = out_uri.rstrip("/")
    if not out_uri.endswith(".parquet"):
        raise ArgumentError(f"name it {out_uri}.parquet: by that jobs.extract tells a manifest from a folder of images")
    storage = open_storage(out_uri, out_options)
    if Path(storage.root).is_file():
        raise ArgumentError(f"{storage.root} is a file, but a manifest is a folder of parts: choose another name")
    source = open_source(arguments, storage)
    wanted = ManifestState(source.name, source.revision, arguments.all_files, command)

    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    check_lease = partial(check_held, storage, run_id)
    with take_lease(storage, run_id, command):
        storage.clean_temporary()
        state = manifest_folder.claim(storage, wanted, overwrite=arguments.overwrite)
        if state.finished:
            say(f"{storage.root} is finished since {state.finished}: {state.rows:,} images; --overwrite lists anew")
            return
        if not source.has_order:
            state = manifest_folder.claim(storage, wanted, overwrite=True)
        held = manifest_folder.read_coverage(storage, state.id)
        if held.seen:
            say(f"going on after {held.seen:,} names in {held.parts:,} parts")
        if held.gaps:
            try:
                list_gaps(source, held.gaps, PartWriter(storage, state.id, check_lease))
            except InputError:
                if not held.parts:
                    storage.delete(manifest_folder.MANIFEST_JSON)    # nothing to go on with
                raise
            held = manifest_folder.read_coverage(storage, state.id)      # what is there, not what was meant to be
        if held.gaps:
            raise Broke(f"{len(held.gaps):,} stretches of names are not in the parts")
        check_lease()
        manifest_folder.write_state(storage, manifest_folder.finish(state, held))
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(held.skipped.items()))
    say(f"{held.rows:,} images of {held.seen:,} names in {held.parts:,} parts of {storage.root}"
        + (f"; left out: {left_out}" if left_out else ""))
    if not held.rows:
        say("there are no images in it; --all-files takes hidden names and every extension")


def open_source(arguments: argparse.Namespace, storage: Storage) -> Source:
    """What BUCKET means. Raises InputError if it cannot be listed, or nothing is there."""
    uri, options = parse_input_uri(arguments.bucket)
    rules = Rules(storage.root, arguments.all_files, options=options)
    scheme = uri_scheme(uri)
    if is_inventory(uri):
        return inventory_source(uri, rules)
    if scheme in BUCKET_SCHEMES:
        return bucket_source(uri, rules, arguments.threads)
    if is_local(uri):
        return folder_source(uri, rules)
    raise InputError(f"{uri} is no bucket: give s3://bucket/prefix, gs://bucket/prefix or a folder")


def bucket_source(uri: str, rules: Rules, threads: int) -> Source:
    """A prefix of a bucket, taken as a folder."""
    bucket_uri, key = split_uri(uri)
    folder = folder_key(key)
    if next(list_objects(bucket_uri, folder, rules.options), None) is None:
        raise InputError(f"nothing is in {bucket_uri}/{folder}: check the prefix, which is taken as a folder; no globs")
    skips = rules.key_rule(bucket_uri, folder)

    def list_spans(spans: list[Span], add: Callable[[Stretch], None]) -> None:
        for stretch in bucket_stretches(bucket_uri, folder, rules.options, skips, spans, threads):
            add(stretch)

    return Source(f"{bucket_uri}/{folder}", list_spans)


def inventory_source(uri: str, rules: Rules) -> Source:
    """An S3 Inventory by its manifest.json."""
    inventory = read_inventory(uri, rules.options)
    skips = rules.key_rule(f"s3://{inventory.bucket}", "")

    def list_spans(spans: list[Span], add: Callable[[Stretch], None]) -> None:
        for stretch in inventory_stretches(inventory, rules.options, skips, spans):
            add(stretch)

    return Source(uri, list_spans, inventory.revision)


def folder_source(uri: str, rules: Rules) -> Source:
    """A local folder, glob or file, as jobs.extract lists it: in no order, but within seconds."""

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
    """The right to write OUT.parquet. Raises LeaseHeld, and ManifestError where nothing can be written."""
    try:
        return Lease.acquire(storage, run_id, command=command, say=say)
    except OSError as error:
        raise ManifestError(f"OUT.parquet cannot be written: {error}") from None


def list_gaps(source: Source, gaps: list[Span], writer: PartWriter) -> None:
    """List what lies in the gaps and write it; on an interruption or a broken connection what is there so far."""
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
    leave(main())
