"""Erase images from an output, list them, or let runs read them again."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs.command import Broke, say
from jobs.pages.marks import is_page
from pipeline.input.indexes import forget_indexes
from pipeline.output import claim, erased, lease, ledger
from pipeline.output.derived import DELETE, records
from pipeline.output.derived_erasure import Erasure, erase_derived
from pipeline.output.report import status_counts
from pipeline.storage import Storage
from pipeline.text import printable


def erase_uris(storage: Storage, run_id: str, uris: pa.Array) -> None:
    """Erase these images, and read all tables again to check that they are gone.

    Called under the lease, after claim.recover. Raises LeaseLost before a commit if another run has the lease.
    """
    check_lease = partial(lease.check_held, storage, run_id)
    # The order matters: if a kill comes between two steps, the next try finds the images, or they are gone for good.
    remembered = erased.read_erased(storage).adding(uris)
    erased.write_erased(storage, remembered)
    forget_indexes(storage)      # they hold names, and from here on no index with an erased name is kept
    found = ledger.read_ledger(storage, ("uri", "n_faces"), only=uris)
    made = erase_derived(storage, uris, have_rows=bool(len(found)))
    pages = remove_pages(storage)
    request = {
        "run_id": run_id,
        "request": remembered.hash("\n".join(sorted(uris.to_pylist()))),
        "uris": len(uris),
        "images": len(found),
        "faces": pc.sum(found["n_faces"]).as_py() or 0,
        "pages": pages,
        "derived": len(made.changed),
        "derived_left": len(made.left),
    }
    if len(found):
        claim.append_audit(storage, {"time": _now(), "event": "begun", **request})
    run = claim.set_run_aside(storage)
    ledger.drop_uris(storage, run_id, uris, check_lease)
    left = ledger.count_rows(storage, uris)
    if left:
        raise Broke(f"{left:,} rows are still there after the erasure; stop what else writes to {storage.root}")
    if run is not None:
        counts: Counter[str] = Counter()
        for rows in ledger.scan_ledger(storage, ("status",)):
            counts.update(status_counts(rows))
        claim.put_run_back(storage, run | {"output": {"images": counts.total(), **counts}})
    check_lease()
    claim.append_audit(storage, {"time": _now(), "event": "erased", **request, "rows_left": left})
    say(
        f"erased {len(found):,} images with {request['faces']:,} faces and {pages:,} preview pages from "
        f"{storage.root}; {len(uris) - len(found):,} of the {len(uris):,} given images were not in it. All tables were "
        "read again: 0 rows of these images are left. Later runs leave these images out"
    )
    say_derived(made)


def say_derived(made: Erasure) -> None:
    """Say what became of the indexes, groups and pages that were made of the output."""
    for thing in made.changed:
        done = "deleted" if thing.on_erase == DELETE else "freed of these images"
        say(f"{done}: the {thing.kind} {thing.place}. `{thing.command}` makes it again")
    for why in made.left:
        say(f"not reached: {why}. It may still show these images: delete it yourself")


def forget_uris(storage: Storage, uris: pa.Array) -> None:
    """Remove names from the list of erased images. Called under the lease."""
    before = erased.read_erased(storage)
    after = before.without(uris)
    removed = len(before.hashes) - len(after.hashes)
    if removed:
        erased.write_erased(storage, after)
    claim.append_audit(storage, {
        "time": _now(), "event": "forgotten", "request": before.hash("\n".join(sorted(uris.to_pylist()))),
        "uris": len(uris), "removed": removed,
    })  # fmt: skip
    say(f"{removed:,} of the {len(uris):,} images were on the list of erased images; the next run reads them again")


def write_list(storage: Storage, wanted: pa.Table) -> None:
    """Print to stdout what would be erased: uri, number of faces and, with --like, the cosine, highest first.

    Columns are separated by tabs. On a terminal control characters in names are escaped; in a file they are not, so
    that --uris finds the names.
    """
    found = ledger.read_ledger(storage, ("uri", "n_faces"), only=wanted["uri"])
    rows = found.join(wanted, "uri").to_pylist()
    writer = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    shown = printable if sys.stdout.isatty() else str
    writer.writerow(["uri", "faces", "cosine"])
    for row in sorted(rows, key=lambda row: (-(row["cosine"] or 0), row["uri"])):
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.3f}"
        writer.writerow([shown(row["uri"]), row["n_faces"] or 0, cosine])
    faces = sum(row["n_faces"] or 0 for row in rows)
    say(f"would erase {len(rows):,} images with {faces:,} faces from {storage.root}; nothing was changed")


def remove_pages(storage: Storage) -> int:
    """Delete our pages in the output that are not on record: they show photos and names. Returns how many."""
    on_record = {thing.place for _, thing in records(storage) if thing and thing.in_output}
    paths = [file.path for file in storage.list("") if file.path.endswith((".html", ".htm"))]
    pages = [path for path in paths if path not in on_record and is_page(storage.read(path))]
    for path in pages:
        storage.delete(path)
    return len(pages)


def _now() -> str:
    """The time, ISO, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
