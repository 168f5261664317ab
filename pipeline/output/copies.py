"""The rows of images of equal content: those of one name, written again for the others as committed parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output import ledger
from pipeline.output.sink import MAX_FACES_PER_PART, part_metadata
from pipeline.schemas import IMAGES
from pipeline.storage import Storage


def write_copies(
    storage: Storage, copies: Iterable[pa.Table], run_id: str, fingerprint: str, check: Callable[[], None]
) -> Iterator[tuple[str, int]]:
    """Commit a part for each table of `duplicates.COPIES`; yields its name and its number of images.

    A part with too many faces is divided. copies: sorted by part, so that each part is read about once.
    check: as for `ledger.write_pair`. Raises LeaseLost.
    """
    reader = _PartReader(storage)
    metadata = part_metadata(fingerprint, run_id)
    for table in (piece for whole in copies for piece in _by_faces(whole, MAX_FACES_PER_PART)):
        images, faces = _copied(table, reader, run_id)
        name = ledger.part_name("part", run_id, table["uri"].to_pylist())
        ledger.write_pair(
            storage, name, faces.replace_schema_metadata(metadata), images.replace_schema_metadata(metadata), check
        )
        yield name, len(images)


class _PartReader:
    """Reads both halves of a part, and keeps the last one."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._name: str | None = None
        self._tables: tuple[pa.Table, pa.Table] | None = None

    def __call__(self, name: str) -> tuple[pa.Table, pa.Table]:
        """images/ and faces/ of the part."""
        if self._tables is None or self._name != name:
            self._tables = None                  # two parts may have 220 MB
            self._tables = self._read(ledger.IMAGES, name), self._read(ledger.FACES, name)
            self._name = name
        return self._tables

    def _read(self, folder: str, name: str) -> pa.Table:
        content = self._storage.read(ledger.path_of(folder, name))
        return pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None)


def _by_faces(copies: pa.Table, max_faces: int) -> Iterator[pa.Table]:
    """The rows in order, in tables of at most so many faces, and at least one row."""
    start, faces = 0, 0
    for row, count in enumerate(copies["n_faces"].to_pylist()):
        if row > start and faces + count > max_faces:
            yield copies.slice(start, row - start)
            start, faces = row, 0
        faces += count
    if start < len(copies):
        yield copies.slice(start)


def _copied(copies: pa.Table, read: _PartReader, run_id: str) -> tuple[pa.Table, pa.Table]:
    """The rows of images/ and faces/ for these copies, in the order of a part."""
    images, faces = [], []
    for part in copies["part"].unique().to_pylist():
        of_part = _copied_from(read(part), copies.filter(pc.equal(copies["part"], part)), run_id)
        images.append(of_part[0])
        faces.append(of_part[1])
    return (
        pa.concat_tables(images).sort_by("uri"),
        pa.concat_tables(faces).sort_by([("uri", "ascending"), ("face_index", "ascending")]),
    )


def _copied_from(part: tuple[pa.Table, pa.Table], copies: pa.Table, run_id: str) -> tuple[pa.Table, pa.Table]:
    """The rows of one part for the copies of its images: all is copied but the names and what the store says of them.

    file_bytes is that of the content.
    """
    images, faces = part
    source = pc.index_in(copies["sha256"], value_set=images["sha256"].combine_chunks())
    new_images = images.take(source)
    for column in ("uri", "etag", "mtime"):
        new_images = _with(new_images, IMAGES.field(column), copies[column])
    new_images = _with(new_images, IMAGES.field("run_id"), pa.array([run_id] * len(copies)))
    image_of = pc.fill_null(pc.index_in(faces["uri"], value_set=images["uri"].combine_chunks()), -1).to_numpy()
    order = np.argsort(image_of, kind="stable")
    sources = source.to_numpy()
    starts, ends = (np.searchsorted(image_of, sources, side, order) for side in ("left", "right"))
    rows = np.concatenate([order[:0], *(order[start:end] for start, end in zip(starts, ends, strict=True))])
    names = copies["uri"].take(pa.array(np.repeat(np.arange(len(copies)), ends - starts)))
    return new_images, _with(faces.take(pa.array(rows)), faces.schema.field("uri"), names)


def _with(table: pa.Table, field: pa.Field, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(field.name), field, values.cast(field.type))
