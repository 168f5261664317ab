"""An output of jobs.extract, as those who read its faces need it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError, UserError
from pipeline.output import claim, ledger
from pipeline.settings import RowSettings
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import StoreOptions, is_local, parse_input_uri

RECORD_COLUMNS = ("uri", "width", "height", "rotation_deg")    # what the pictures of a row's face are cut by

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """An output that a run has begun.

    models: the fingerprint of each card, by role. thresholds: from false positive rate to cosine, empty before the
    first run has ended. parquet: the columns of the images, where INPUT was Parquet files.
    """

    storage: Storage
    options: StoreOptions
    settings: RowSettings
    models: Mapping[str, Mapping[str, Any]]
    thresholds: Mapping[str, float]
    parquet: Mapping[str, Any] | None


def holds_output(place: str) -> bool:
    """Whether a folder or prefix is an output. Any fault of a place that is none means that it is none."""
    try:
        uri, options = parse_input_uri(place)
        open_storage(uri, options).open(claim.OUTPUT_JSON).close()
    except (OSError, UserError):
        return False
    return True


def open_output(place: str) -> Output:
    """The output at a folder or prefix. Raises OutputError if there is none, or none that this version can read."""
    uri, options = parse_input_uri(place)
    storage = open_storage(uri, options)
    begun = claim.begun_with(storage)
    if begun is None:
        raise OutputError(
            f"there is no {claim.OUTPUT_JSON} in {storage.root}: this is not an output of jobs.extract. Check the path"
        )
    try:
        settings, models = RowSettings.of_output(begun["settings"]), dict(begun["models"])
        models["embedder"]["tensors_sha256"]
    except (ValueError, TypeError, LookupError, AttributeError):
        raise OutputError(
            f"{storage.root}/{claim.OUTPUT_JSON} is damaged or of a newer version; restore it, or update facelake"
        ) from None
    run = _run_of(storage)
    listing = run.get("listing") or {}
    return Output(storage, options, settings, models, run.get("cosine_thresholds") or {}, listing.get("parquet"))


def _run_of(storage: Storage) -> dict[str, Any]:
    """run.json, which only adds to what is known; {} while a run has not ended."""
    try:
        run = json.loads(storage.read(claim.RUN_JSON))
    except (FileNotFoundError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def find_face(output: Output, uris: Sequence[str], face_index: int) -> Row:
    """The row of faces/ of a committed face. uris: spellings of one name; the first that is there counts.

    Raises OutputError if the output has no such image, or the image no such face.
    """
    root = output.storage.root
    records = ledger.read_ledger(output.storage, ("uri",), only=pa.array(uris, pa.string())).to_pylist()
    if not records:
        raise OutputError(f"{root} has no image {uris[0]}; the column uri names them")
    record = next(record for uri in uris for record in records if record["uri"] == uri)
    faces = faces_of(output.storage, record["part"], [record["uri"]])
    for face in faces:
        if face["face_index"] == face_index:
            return face
    known = f"its faces are 0 to {len(faces) - 1}" if faces else "no face was found in it"
    raise OutputError(f"{record['uri']} in {root} has no face {face_index}: {known}")


@dataclass(frozen=True, slots=True)
class PartFile:
    """One of the two files of a part, read as a whole: most of it is wanted, and a bucket gives it in one answer."""

    content: bytes | memoryview
    parquet: pq.ParquetFile


def bytes_of(storage: Storage, path: str) -> np.ndarray:
    """A file as (n,) uint8; on a disk only what is looked at is read. Raises OSError."""
    if is_local(storage.root):
        file = Path(storage.root, path)
        return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    return np.frombuffer(storage.read(path), np.uint8)


@contextmanager
def reading_part(storage: Storage, folder: str, part: str, *, few: bool = False) -> Iterator[PartFile]:
    """A file of a part. Raises OutputError in place of what pyarrow says of a damaged one.

    few: little of it will be looked at, see `bytes_of`.
    """
    path = f"{folder}/{part}.parquet"
    content = bytes_of(storage, path).data if few else storage.read(path)
    with ledger.naming_damage(storage, part), pq.ParquetFile(pa.BufferReader(content)) as parquet:
        yield PartFile(content, parquet)


def faces_of(storage: Storage, part: str, uris: Sequence[str]) -> list[Row]:
    """The rows of faces/ of these images of a part, in the order of the part."""
    with reading_part(storage, ledger.FACES, part) as file:
        found = pc.is_in(file.parquet.read(columns=["uri"])["uri"], value_set=pa.array(uris, pa.string()))
        rows: list[Row] = file.parquet.read().filter(found).to_pylist() if pc.any(found).as_py() else []
    return rows


def vector_of(face: Row) -> np.ndarray:
    """The embedding of a row of faces/; (dim,) float32."""
    return np.array(face["embedding"], np.float32)


def check_vectors(storage: Storage, part: str, parquet: pq.ParquetFile, dim: int) -> None:
    """Raises OutputError unless the vectors of a part have this many values."""
    kind = parquet.schema_arrow.field("embedding").type
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    if size != dim:
        raise OutputError(
            f"the part {part} of {storage.root} has vectors of {size} values, the probes have {dim}: vectors of two "
            "dimensions cannot be compared"
        )
