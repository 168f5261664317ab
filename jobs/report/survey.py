"""Read the tables of an output once: totals, reasons, histograms, and the rows of the photos that are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.choice import Choice
from jobs.report.histograms import Histograms
from pipeline import schemas
from pipeline.batch import GOOD
from pipeline.errors import OutputError
from pipeline.output import ledger
from pipeline.people.outputs import Row, reading_part
from pipeline.people.vectors import vector_blocks
from pipeline.storage import Storage

EXAMPLES = 3                  # of each reason
SHOWN_REASONS = 60
_HELD_REASONS = 5_000         # errors may quote the file, so that each is another one
_THREADS = 4                  # a part may have 110 MB
_MEASURED = ("det_score", "roll_deg", "sharpness", "embedding_norm")
_FACE_COLUMNS = ["uri", "face_index", "x1", "y1", "x2", "y2", "eye_distance_px", "align_ok", *_MEASURED]
_ALIGNED_BY = ("eye_points", "eye_spread", "points5")       # where the output has them
_RECORD_COLUMNS = (
    "uri", "status", "error", "width", "height", "format", "exif_orientation", "rotation_deg", "decode_scale",
    "detect_pass", "n_faces", "faces_truncated",
)

Progress = Callable[[str], None]
"""Is told how far the work is."""


@dataclass(slots=True)
class Reason:
    """Images that failed alike. examples: the first of their names."""

    status: str
    error: str
    images: int = 0
    examples: list[str] = field(default_factory=list)


class Face(NamedTuple):
    """A face of a chosen photo: its row of faces/ without the vector, and the vector (dim,) float32."""

    row: Row
    vector: np.ndarray


@dataclass(slots=True)
class Survey:
    """What the tables have. parts: how many there are, and how many of them were read.

    counts: images by status, of the parts that were read. other_reasons: images whose reason is not listed. photos: the
    chosen rows of images/ with faces, then without, lowest hash first; with the name of their part. faces: by uri.
    """

    parts: int
    parts_read: int
    counts: Counter[str]
    reasons: list[Reason]
    other_reasons: int
    histograms: Histograms
    photos: Sequence[Row]
    faces: Mapping[str, Sequence[Face]]


def survey(
    storage: Storage, *, photos: int, faces: int, max_parts: int, progress: Progress, also: Sequence[str] = ()
) -> Survey:
    """Read an output. Raises OutputError for damaged parts.

    photos: shown at least, of those with faces, and of those without together with them. faces: how many faces may be
    shown of further photos. also: images to show besides. max_parts: of more parts so many are read, spread evenly over
    their names. Memory holds some parts, and what is shown.
    """
    all_parts = ledger.committed_parts(storage)
    parts = spread(all_parts, max_parts)
    found = _Images(photos, faces, also)
    for rows in ledger.scan_ledger(storage, _RECORD_COLUMNS, parts=parts):
        found.add(rows)
        progress(f"read the rows of {found.counts.total():,} images")
    chosen = found.chosen()
    by_part: dict[str, list[str]] = {}
    for record in chosen:
        by_part.setdefault(record["part"], []).append(record["uri"])
    rows_of: dict[str, list[Face]] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        read = threads.map(lambda part: _read_faces(storage, part, by_part.get(part, [])), parts)
        for done, part in enumerate(read, 1):
            found.histograms.add(part.measured)
            for face in part.faces:
                rows_of.setdefault(face.row["uri"], []).append(face)
            progress(f"read the faces of {done:,} of {len(parts):,} parts")
    _check_dimensions(storage, rows_of)
    for of_photo in rows_of.values():
        of_photo.sort(key=lambda face: int(face.row["face_index"]))
    reasons = found.reasons()
    left = sum(found.counts.values()) - sum(found.counts[status] for status in GOOD)
    return Survey(
        len(all_parts), len(parts), found.counts, reasons, left - sum(reason.images for reason in reasons),
        found.histograms, chosen, rows_of,
    )


def spread(parts: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the parts, spread evenly."""
    if len(parts) <= most:
        return parts
    return [parts[i * len(parts) // most] for i in range(most)]


class _Images:
    """What is counted and chosen of the rows of images/."""

    def __init__(self, photos: int, faces: int, also: Sequence[str]) -> None:
        schema = pa.schema([*(schemas.IMAGES.field(name) for name in _RECORD_COLUMNS), ("part", pa.string())])
        self._photos = photos
        self._wanted, self._also = pa.array(also, pa.string()), schema.empty_table()
        self._with_faces, self._without = Choice(schema, photos, faces), Choice(schema, photos, 0)
        self._reasons: dict[tuple[str, str], Reason] = {}
        self.counts: Counter[str] = Counter()
        self.histograms = Histograms()

    def add(self, rows: pa.Table) -> None:
        """Take the rows of some parts."""
        self.counts.update({row["values"]: row["counts"] for row in pc.value_counts(rows["status"]).to_pylist()})
        is_good = pc.is_in(rows["status"], value_set=pa.array([status.value for status in GOOD]))
        good = rows.filter(is_good)
        has_faces = pc.greater(pc.fill_null(good["n_faces"], 0), 0)
        self._with_faces.add(good.filter(has_faces))
        self._also = pa.concat_tables([self._also, good.filter(pc.is_in(good["uri"], value_set=self._wanted))])
        self._without.add(good.filter(pc.invert(has_faces)))
        self.histograms.add({"faces": good["n_faces"].fill_null(0).to_numpy()})
        self._add_reasons(rows.filter(pc.invert(is_good)))

    def _add_reasons(self, rows: pa.Table) -> None:
        for row in rows.select(["status", "error", "uri"]).sort_by("uri").to_pylist():
            key = row["status"], row["error"] or ""
            if key not in self._reasons and len(self._reasons) >= _HELD_REASONS:
                continue
            reason = self._reasons.setdefault(key, Reason(*key))
            reason.images += 1
            if len(reason.examples) < EXAMPLES:
                reason.examples.append(row["uri"])

    def reasons(self) -> list[Reason]:
        """The most frequent reasons."""
        return sorted(self._reasons.values(), key=lambda found: (-found.images, found.status, found.error))[
            :SHOWN_REASONS
        ]

    def chosen(self) -> list[Row]:
        """The photos to show, those with faces first, and last those that were asked for by name."""
        with_faces = self._with_faces.table.to_pylist()
        without = self._without.table.to_pylist()
        by_choice = [*with_faces, *without[: max(0, self._photos - len(with_faces))]]
        chosen = {row["uri"] for row in by_choice}
        by_name = {row["uri"]: row for row in self._also.to_pylist() if row["uri"] not in chosen}
        return [*by_choice, *by_name.values()]


class _PartFaces(NamedTuple):
    measured: dict[str, np.ndarray]
    faces: list[Face]


def _read_faces(storage: Storage, part: str, uris: Sequence[str]) -> _PartFaces:
    """The measured values of all faces of a part, and the faces of these images."""
    with reading_part(storage, ledger.FACES, part) as file:
        table = file.parquet.read(columns=_FACE_COLUMNS, use_threads=False)
        measured = {name: table[name].to_numpy() for name in _MEASURED}
        x1, y1, x2, y2 = (table[name].to_numpy() for name in ("x1", "y1", "x2", "y2"))
        measured["size"] = np.maximum(x2 - x1, y2 - y1)
        rows = np.flatnonzero(pc.is_in(table["uri"], value_set=pa.array(uris, pa.string())).to_numpy())
        if not len(rows):
            return _PartFaces(measured, [])
        names = [name for name in _ALIGNED_BY if name in file.parquet.schema_arrow.names]
        for name, column in zip(names, file.parquet.read(columns=names, use_threads=False).columns, strict=True):
            table = table.append_column(name, column)
        wanted = table.take(pa.array(rows)).to_pylist()
        dim = file.parquet.schema_arrow.field("embedding").type.list_size
        vectors = _vectors(vector_blocks(file.content, file.parquet, "embedding", dim), rows)
    return _PartFaces(measured, [Face(row, vector) for row, vector in zip(wanted, vectors, strict=True)])


def _vectors(blocks: Iterator[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Those of these rows, which ascend; float32."""
    found: list[np.ndarray] = []
    start = 0
    for block in blocks:
        inside = rows[(rows >= start) & (rows < start + len(block))]
        found += list(block[inside - start].astype(np.float32))
        start += len(block)
    return found


def _check_dimensions(storage: Storage, faces: Mapping[str, Sequence[Face]]) -> None:
    """Raises OutputError unless all vectors have the same number of values."""
    sizes: set[Any] = {len(face.vector) for of_photo in faces.values() for face in of_photo}
    if len(sizes) > 1:
        raise OutputError(
            f"the parts of {storage.root} have vectors of {' and '.join(map(str, sorted(sizes)))} values: vectors of "
            "two dimensions cannot be compared"
        )
