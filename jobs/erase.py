"""Take images and all their faces out of an output, for good. See --help."""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import Broke, run_command, say
from jobs.extract.stages import StageConfig, alignment_template, local_weights, stage_builders
from jobs.options import ArgumentError, command_parser, program, share
from jobs.preview.page import is_page
from models.store import WeightCard, read_card
from pipeline.batch import GOOD, FaceBatch, ImageRecord, TodoRow
from pipeline.boundary import STAGES
from pipeline.errors import OutputError
from pipeline.input.manifest import read_manifest
from pipeline.output import claim as output
from pipeline.output import erased, lease, ledger
from pipeline.output.report import status_counts
from pipeline.run.interrupt import leave
from pipeline.settings import RowSettings
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import absolute, is_local, local_path, local_uri, parse_input_uri
from pipeline.text import printable

DESCRIPTION = """Take images and all their faces out of an output, for good.

    python -m jobs.erase out/ --uri photos/ann.jpg photos/bob.jpg
    python -m jobs.erase s3://bucket/faces --uris list.txt
    python -m jobs.erase out/ --like ann.jpg --dry-run > list.txt      # look at it, strike lines, then --uris list.txt

Whole images go: their row and every face in them, of other people too. A row that stayed with fewer faces would be one
that no run has made, and the next --redo-changed would bring the face back. The next run of the same INPUT leaves them
out: OUTPUT/_erased.parquet holds salted hashes of their names, no names. --forget takes names off that list again.

What it cannot reach: the photos themselves, a page of jobs.preview outside OUTPUT, copies, backups, and the old
versions that a bucket with versioning keeps. --like finds who is in OUTPUT now: photos that are read later are not
compared with anyone.

A killed erasure is finished by the same command. Exit codes: 0 done, also when nothing was found; 1 it broke and can be
repeated; 2 wrong arguments, lease, or another embedder than the output's; 130 and 143 interrupted.
"""

DEFAULT_FALSE_POSITIVE_RATE = "0.001"
_READ_THREADS = 4     # a part has up to 110 MB


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parse_arguments(argv)
    return run_command(
        "erase", partial(erase, arguments), again="The same command finishes it.",
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser("erase", DESCRIPTION)
    parser.add_argument("output", metavar="OUTPUT", help="what jobs.extract has written: a folder or a bucket prefix")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--uri", nargs="+", metavar="URI", help="images, as the column uri names them")
    whom.add_argument("--uris", metavar="FILE", help="a manifest that lists them: .txt, .csv or .parquet")
    whom.add_argument("--like", metavar="PHOTO", help="all images with a face like the one in this photo")
    parser.add_argument("--min-cosine", type=share, metavar="C",
                        help="with --like: least cosine; default: the embedder's own for a false positive rate of "
                             f"{DEFAULT_FALSE_POSITIVE_RATE}")
    parser.add_argument("--face", type=int, metavar="N",
                        help="with --like: which face of PHOTO, from 0 by descending score, where it has several")
    parser.add_argument("--weights", metavar="DIR|URI", help="with --like: folder with the weights that made the "
                        "output; default: models/weights of this repository")
    parser.add_argument("--dry-run", action="store_true",
                        help="erase nothing; write what would go to stdout, as a list that --uris takes")
    parser.add_argument("--forget", action="store_true",
                        help="erase nothing; let runs read these images again that were erased before")
    arguments = parser.parse_args(argv)
    if arguments.like is None and (arguments.min_cosine is not None or arguments.face is not None or arguments.weights):
        parser.error("--min-cosine, --face and --weights go with --like")
    if arguments.forget and (arguments.like is not None or arguments.dry_run):
        parser.error("--forget goes with --uri or --uris only: an output does not know who was erased from it")
    return arguments


def erase(arguments: argparse.Namespace) -> None:
    """Find the images, and erase or forget them or say which they are."""
    output_uri, options = parse_input_uri(arguments.output)
    storage = open_storage(output_uri, options)
    try:
        made_with = json.loads(storage.read(output.OUTPUT_JSON))
    except FileNotFoundError:
        raise OutputError(f"no {output.OUTPUT_JSON} in {storage.root}: not an output of jobs.extract") from None
    find = finder(arguments, made_with)
    if arguments.dry_run:
        write_list(storage, find(storage))
        return
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    # The command that the lease shows to others names no image.
    with output.take_lease(storage, run_id, program("erase"), say):
        output.recover(storage)
        uris = find(storage)["uri"].combine_chunks()
        if arguments.forget:
            forget_uris(storage, uris)
        else:
            erase_uris(storage, run_id, uris)


def erase_uris(storage: Storage, run_id: str, uris: pa.Array) -> None:
    """Erase these images and prove it by reading everything again. Called under the lease, of an output that is whole.

    Raises LeaseLost before anything is committed that another run would not expect.
    """
    check_lease = partial(lease.check_held, storage, run_id)
    # In this order: killed between any two steps, the images are still there to be found, or are gone for good.
    remembered = erased.read_erased(storage).adding(uris)
    erased.write_erased(storage, remembered)
    pages = remove_pages(storage)
    found = ledger.read_ledger(storage, ("uri", "n_faces"), only=uris)
    request = {
        "run_id": run_id,
        "request": remembered.hash("\n".join(sorted(uris.to_pylist()))),
        "uris": len(uris),
        "images": len(found),
        "faces": pc.sum(found["n_faces"]).as_py() or 0,
        "pages": pages,
    }
    if len(found):
        output.append_audit(storage, {"time": now(), "event": "begun", **request})
    run = output.set_run_aside(storage)
    ledger.drop_uris(storage, run_id, uris, check_lease)
    left = ledger.count_rows(storage, uris)
    if left:
        raise Broke(f"{left:,} rows are still there after the erasure; stop what else writes to {storage.root}")
    if run is not None:
        rows = ledger.read_ledger(storage, ("status",))
        output.put_run_back(storage, run | {"output": {"images": len(rows), **status_counts(rows)}})
    check_lease()
    output.append_audit(storage, {"time": now(), "event": "erased", **request, "rows_left": left})
    say(
        f"erased {len(found):,} images with {request['faces']:,} faces from {storage.root}, and {pages:,} preview "
        f"pages; {len(uris) - len(found):,} of the {len(uris):,} asked for were not in it. Read again: 0 rows of them "
        "are left. Later runs leave all of them out"
    )


def forget_uris(storage: Storage, uris: pa.Array) -> None:
    """Take names off the list of what must not come back. Called under the lease."""
    before = erased.read_erased(storage)
    after = before.without(uris)
    removed = len(before.hashes) - len(after.hashes)
    if removed:
        erased.write_erased(storage, after)
    output.append_audit(storage, {
        "time": now(), "event": "forgotten", "request": before.hash("\n".join(sorted(uris.to_pylist()))),
        "uris": len(uris), "removed": removed,
    })  # fmt: skip
    say(f"{removed:,} of the {len(uris):,} were on the list of erased images; the next run reads them again")


def write_list(storage: Storage, wanted: pa.Table) -> None:
    """What would go, to stdout: tab-separated uri, its faces and, with --like, the cosine; likest first.

    On a terminal control characters in names are escaped; elsewhere names are as they are, so that --uris finds them.
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
    """Delete the pages of jobs.preview that lie in the output: they show photos and names; returns how many."""
    paths = [file.path for file in storage.list("") if file.path.endswith((".html", ".htm"))]
    pages = [path for path in paths if is_page(storage.read(path))]
    for path in pages:
        storage.delete(path)
    return len(pages)


# --- whom


def finder(arguments: argparse.Namespace, made_with: Mapping[str, Any]) -> Callable[[Storage], pa.Table]:
    """A function that gives the images asked for, as a table of uri and cosine, each uri once.

    What is slow or can be refused is done here, before the lease is taken: the photo is read, its face embedded.
    """
    if arguments.like is not None:
        weights_dir = local_weights(arguments.weights)
        cards = {role: find_card(weights_dir, role, model) for role, model in made_with["models"].items()}
        faces = probe_faces(arguments.like, RowSettings(**made_with["settings"]), weights_dir, cards)
        vector = choose_face(arguments.like, faces, arguments.face)
        least = arguments.min_cosine
        if least is None:
            least = default_min_cosine(cards["embedder"])
        say(f"images with a face of cosine {least:.3f} or more")
        return lambda storage: images_like(storage, vector, least)
    if arguments.uri:
        uris = pa.array([as_uri(name) for name in arguments.uri], pa.string())
    else:
        path, options = parse_input_uri(arguments.uris)
        pieces = list(read_manifest(absolute(local_path(path)) if is_local(path) else path, options))
        if without_uri := sum(nameless for _, nameless in pieces):
            say(f"{without_uri:,} rows of {arguments.uris} have no uri")
        uris = pa.chunked_array([chunk for table, _ in pieces for chunk in table["uri"].chunks], pa.string())
    uris = uris.unique()
    table = pa.table({"uri": uris, "cosine": pa.nulls(len(uris), pa.float32())})
    return lambda storage: table


def as_uri(name: str) -> str:
    """What the column uri has for an argument: a relative path is made absolute. Raises ArgumentError."""
    if is_local(name):
        path = local_path(name)
        return local_uri(path if path.startswith("/") else absolute(path))
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"not UTF-8: {name!r}") from None
    return parse_input_uri(name)[0]


def find_card(weights_dir: Path, role: str, made_with: Mapping[str, Any]) -> WeightCard:
    """The card of the model that made an output, whatever its name. Raises OutputError if it is not in the folder."""
    names = sorted(path.stem.removeprefix(f"{role}-") for path in weights_dir.glob(f"{role}-*.json"))
    for name in names:
        card = read_card(weights_dir, role, name)
        if card.fingerprint() == made_with:
            return card
    raise OutputError(
        f"the output was made with another {role}, {made_with['architecture']['network']}@"
        f"{made_with['tensors_sha256'][:12]}, than those in {weights_dir} ({', '.join(names) or 'none'}), and vectors "
        "of two embedders cannot be compared; name its folder with --weights"
    )


def default_min_cosine(embedder: WeightCard) -> float:
    """The cosine at a false positive rate of 0.001. Raises ArgumentError where the card has none."""
    try:
        return embedder.thresholds[DEFAULT_FALSE_POSITIVE_RATE]
    except KeyError:
        raise ArgumentError(f"the embedder {embedder.name} has no threshold in its card; give --min-cosine") from None


def probe_faces(
    photo: str, settings: RowSettings, weights_dir: Path, cards: Mapping[str, WeightCard]
) -> FaceBatch:
    """The faces of a photo, made as those of the output. Raises ArgumentError where the photo cannot be read."""
    config = StageConfig(
        settings=settings, store_options=parse_input_uri(photo)[1], image_column=None, weights=str(weights_dir),
        **cards, template=alignment_template(cards["embedder"]),
        device="cpu", detect_batch=1, face_batch=32, batch_images=1, batch_bytes=256 << 20,
    )
    builders, threads = stage_builders(config), os.cpu_count() or 1
    (batch,) = builders["decode"](threads)([TodoRow(as_uri(photo))])
    for name in STAGES[1:]:
        refuse_unread(photo, batch.records[0])
        batch = builders[name](threads)(batch)
    refuse_unread(photo, batch.records[0])
    return batch


def refuse_unread(photo: str, record: ImageRecord) -> None:
    """Raises ArgumentError for a photo with which something is wrong."""
    if record.status not in GOOD:
        raise ArgumentError(f"--like {photo}: {record.status}: {record.error}")


def choose_face(photo: str, faces: FaceBatch, number: int | None) -> np.ndarray:
    """The unit vector (dim,) float32 of the only face, or of face `number`. Raises ArgumentError if it is unclear."""
    if not len(faces):
        raise ArgumentError(f"--like {photo}: no face was found in it; take a photo that shows it larger")
    if number is None and len(faces) > 1:
        boxes = "\n".join(
            f"  --face {i}: score {score:.2f}, x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f}"
            for i, (box, score) in enumerate(zip(faces.boxes_xyxy, faces.scores, strict=True))
        )
        raise ArgumentError(f"--like {photo}: {len(faces)} faces were found in it; say which\n{boxes}")
    if number is not None and not 0 <= number < len(faces):
        raise ArgumentError(f"--face {number}: the faces of {photo} are 0 to {len(faces) - 1}")
    return faces.embeddings[number or 0]


def images_like(storage: Storage, vector: np.ndarray, min_cosine: float) -> pa.Table:
    """The images with a face of at least this cosine to the unit vector: uri, and cosine of the likest face."""

    def search(name: str) -> pa.Table:
        with storage.open(f"{ledger.FACES}/{name}.parquet") as file:
            faces = pq.read_table(file, columns=["uri", "embedding"])
        vectors = faces["embedding"].combine_chunks().flatten().to_numpy().reshape(len(faces), len(vector))
        cosines = pa.array(vectors.astype(np.float32) @ vector, pa.float32())
        return pa.table({"uri": faces["uri"], "cosine": cosines}).filter(pc.greater_equal(cosines, min_cosine))

    empty = pa.table({"uri": pa.array([], pa.string()), "cosine": pa.array([], pa.float32())})
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        found = pa.concat_tables([empty, *threads.map(search, ledger.committed_parts(storage))])
    return found.group_by("uri").aggregate([("cosine", "max")]).rename_columns(["uri", "cosine"])


def now() -> str:
    """The time, ISO, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    leave(main())
