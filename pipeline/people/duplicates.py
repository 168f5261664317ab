"""Images that an output has more than once: equal files, photos that are nearly equal, one person twice in a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.output import ledger
from pipeline.output.todo import MEMORY_LIMIT
from pipeline.people.likeness import cosines, unit
from pipeline.people.outputs import Output, reading_part
from pipeline.storage.scratch import ScratchFolder

DUPLICATES = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),         # equal, near, same_person
        pa.field("group", pa.int64(), nullable=False),         # from 0, within a kind
        pa.field("uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32()),                    # of same_person; of near the largest face
        pa.field("cosine", pa.float32()),                      # to the group's first
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("file_bytes", pa.int64()),
    ]
)

# A copy of a photo in half the size, JPEG quality 60: 19 of 29 pass all four; most others because the face has less
# than 60 px or another is the largest. Other photos of a person in the same place differ in the eyes.
NEAR_COSINE = 0.6         # of the largest faces
NEAR_PLACE = 0.015        # of the picture's sides: how far the middle of the face may be off
NEAR_SIZE = 0.1           # of the face's size, and of the picture's shape: how much they may differ
NEAR_EYES = 0.05          # of the face's size: how far the eyes may be off, on average, where they are known
SAME_COSINE = 0.6         # of two faces of one photo: families and crowds in uniform have up to 0.55
SAME_MIN_PX = 40          # smaller faces of strangers look alike too often

_IMAGE_COLUMNS = ("uri", "width", "height", "file_bytes", "sha256")
_EYES = ("left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y")
_FACE_COLUMNS = ["uri", "face_index", "x1", "y1", "x2", "y2", *_EYES, "align_ok", "embedding"]
_GRIDS, _SIGNS = 8, 20
_BLOCK_PHOTOS = 32        # compared with each other: a cell with more is cut
_KEPT_PAIRS = 1_000_000   # in memory, and twice as many as there are photos in groups
_ROWS = 2048              # photos that are compared at a time: their vectors stay in the processor's cache

_PHOTOS = pa.schema(
    [
        *(pa.field(name, kind) for name, kind in (
            ("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("file_bytes", pa.int64()),
            ("sha256", pa.string()), ("id", pa.int64()), ("face_index", pa.int32()), ("x", pa.float64()),
            ("y", pa.float64()), ("size", pa.float64()), ("shape", pa.float64()), ("left_x", pa.float64()),
            ("left_y", pa.float64()), ("right_x", pa.float64()), ("right_y", pa.float64()),
            ("codes", pa.list_(pa.int32())),
        )),
    ]
)  # fmt: skip

_EQUAL = """
    SELECT 'equal' AS kind, dense_rank() OVER (ORDER BY sha256) - 1 AS "group", uri, NULL::INTEGER AS face_index,
           1::FLOAT AS cosine, width, height, file_bytes
    FROM photos WHERE sha256 IN (SELECT sha256 FROM photos GROUP BY sha256 HAVING count(*) > 1)
    ORDER BY "group", uri
"""

_PLACES = """
    CREATE TABLE places AS
    SELECT DISTINCT ON (coalesce(sha256, uri)) id, x, y, size, shape, left_x, left_y, right_x, right_y, codes
    FROM photos WHERE id IS NOT NULL ORDER BY uri
"""

# Two photos that are near are in one cell of some of these grids, each shifted by half a cell in some directions.
# Where pictures are framed alike, as in a video, a cell has many: they are sorted by the sides of random planes that
# their vectors lie on, which is another order for every grid, and cut into blocks.
_GRID = f"""
    SELECT * EXCLUDE (code), (row_number() OVER (
        PARTITION BY cell_x, cell_y, cell_size ORDER BY code, id) - 1) // {_BLOCK_PHOTOS} AS block
    FROM (
        SELECT * EXCLUDE (codes), codes[$shift + 1] AS code,
               floor(x / {2 * NEAR_PLACE} + ($shift & 1) / 2)::INTEGER AS cell_x,
               floor(y / {2 * NEAR_PLACE} + ($shift >> 1 & 1) / 2)::INTEGER AS cell_y,
               floor(size / {2 * NEAR_SIZE} + ($shift >> 2 & 1) / 2)::INTEGER AS cell_size
        FROM places)
    ORDER BY cell_x, cell_y, cell_size, block
"""
_MEASURES = ("x", "y", "size", "shape", "left_x", "left_y", "right_x", "right_y")
_BLOCK = ("cell_x", "cell_y", "cell_size", "block")


@dataclass(slots=True)
class Duplicates:
    """Finds what an output has more than once. A context manager.

    min_cosine: from which the largest faces of two photos are the same picture. same_cosine: from which two faces of a
    photo are one person. progress: is told the number of parts that are read, and of all. faces: read so far.
    What is known of the images is in DuckDB, which spills, and the vectors are in a file. Memory holds the pairs of
    alike faces of one photo, which are few, unless a contact sheet shows one person hundreds of times.
    """

    output: Output
    same_cosine: float = SAME_COSINE
    min_cosine: float = NEAR_COSINE
    progress: Callable[[int, int], None] = field(default=lambda done, all_: None)
    faces: int = 0
    images: int = 0
    _same: list[dict[str, Any]] = field(default_factory=list)
    _folder: ScratchFolder = field(init=False)
    _database: duckdb.DuckDBPyConnection = field(init=False)
    _photos: int = 0
    _dim: int = 0

    def __enter__(self) -> Self:
        self._folder = ScratchFolder()
        self._database = duckdb.connect(
            ":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(self._folder.path)}
        )
        self._database.execute("SET enable_progress_bar = false")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()
        self._folder.close()

    def __call__(self) -> pa.Table:
        """All that is there more than once, with the schema DUPLICATES. Raises OutputError for damaged parts."""
        self._read()
        return pa.concat_tables([
            self._database.sql(_EQUAL).to_arrow_table().cast(DUPLICATES), self._near(),
            self._same_person(),
        ])

    def _read(self) -> None:
        parts = ledger.committed_parts(self.output.storage)
        self._database.register("rows", _PHOTOS.empty_table())
        self._database.execute("CREATE TABLE photos AS SELECT * FROM rows")
        with (self._folder.path / "vectors").open("wb") as vectors:
            for done, part in enumerate(parts, 1):
                photos, largest = self._read_part(part)
                vectors.write(largest.astype(np.float16).tobytes())
                self._database.register("rows", photos)
                self._database.execute("INSERT INTO photos BY NAME SELECT * FROM rows")
                self.progress(done, len(parts))
        # A run that was killed may have left an image in two parts.
        self._database.execute("CREATE OR REPLACE TABLE photos AS SELECT DISTINCT ON (uri) * FROM photos ORDER BY uri")

    def _read_part(self, part: str) -> tuple[pa.Table, np.ndarray]:
        """The images of a part as _PHOTOS, and the vectors of the largest face of each that has some."""
        storage = self.output.storage
        with reading_part(storage, ledger.IMAGES, part) as file:
            images = file.parquet.read(columns=list(_IMAGE_COLUMNS))
        with reading_part(storage, ledger.FACES, part) as file:
            faces = file.parquet.read(columns=_FACE_COLUMNS).sort_by("uri").combine_chunks()
        self.images, self.faces = self.images + len(images), self.faces + len(faces)
        records = {record["uri"]: record for record in images.to_pylist()}
        found = _Faces.of(faces)
        self._dim = found.vectors.shape[1] or self._dim
        largest: list[int] = []
        for start, end in found.of_images():
            record = records.get(found.uris[start])
            if record is None or not record["width"] or not record["height"]:
                continue
            best = start + int(found.sides[start:end].argmax())
            record |= found.place(best, record["width"], record["height"]) | {"id": self._photos + len(largest)}
            largest.append(best)
            self._same += self._twice(found, record, start, end)
        for row, codes in zip(largest, sign_codes(found.vectors[largest]).tolist(), strict=True):
            records[found.uris[row]]["codes"] = codes
        self._photos += len(largest)
        return pa.Table.from_pylist(list(records.values()), schema=_PHOTOS), found.vectors[largest]

    def _twice(self, faces: _Faces, record: dict[str, Any], start: int, end: int) -> Iterator[dict[str, Any]]:
        """Pairs of faces of one photo that are one person: a mirror, a collage, a poster, or a false match."""
        rows = np.flatnonzero(faces.clear[start:end]) + start
        alike = np.triu(cosines(faces.vectors[rows], faces.vectors[rows]), 1) if len(rows) > 1 else np.zeros((0, 0))
        for first, other in np.argwhere(alike >= self.same_cosine):
            for row in (rows[first], rows[other]):
                yield {
                    "kind": "same_person", "uri": record["uri"], "face_index": faces.indices[row],
                    "cosine": float(alike[first, other]), "width": record["width"], "height": record["height"],
                    "file_bytes": record["file_bytes"],
                }

    def _same_person(self) -> pa.Table:
        pairs = [self._same[i : i + 2] for i in range(0, len(self._same), 2)]
        pairs.sort(key=lambda pair: (-pair[0]["cosine"], pair[0]["uri"]))
        rows = [row | {"group": group} for group, pair in enumerate(pairs) for row in pair]
        return pa.Table.from_pylist(rows, schema=DUPLICATES)

    def _near(self) -> pa.Table:
        pairs = self._near_pairs() if self._photos else np.zeros((0, 2), np.int64)
        if not len(pairs):
            return DUPLICATES.empty_table()
        ids, groups, first = linked(pairs)
        vectors = self._vectors()
        found = np.einsum("nd,nd->n", unit(vectors[ids]), unit(vectors[first]))
        self._database.register("near", pa.table({"id": ids, "group": groups, "cosine": found}))
        query = """SELECT 'near' AS kind, "group", uri, face_index, cosine::FLOAT AS cosine, width, height, file_bytes
                   FROM near JOIN photos USING (id) ORDER BY "group", uri"""
        return self._database.sql(query).to_arrow_table().cast(DUPLICATES)

    def _near_pairs(self) -> np.ndarray:
        """The ids (n, 2) of photos that are nearly equal: enough of them to link each group."""
        self._database.execute(_PLACES)
        kept, count, most = [np.zeros((0, 2), np.int64)], 0, _KEPT_PAIRS
        for shift in range(_GRIDS):
            photos = self._database.sql(_GRID, params={"shift": shift}).to_arrow_reader(_ROWS)
            for pairs in self._pairs_of_blocks(photos):
                kept.append(pairs)
                count += len(pairs)
                if count > most:
                    ids, _, first = linked(np.concatenate(kept))
                    kept = [np.stack([first, ids], axis=1)[first != ids]]
                    count = len(kept[0])
                    most = _KEPT_PAIRS + 2 * count
        return np.concatenate(kept)

    def _pairs_of_blocks(self, photos: Iterable[pa.RecordBatch]) -> Iterator[np.ndarray]:
        """The ids (n, 2) of near photos of the same block, by their places and their vectors."""
        vectors = self._vectors()
        for some in whole_blocks(photos):
            near = [(first, other) for first, other in near_places(some) if len(first)]
            if not near:
                continue
            ids = some["id"].to_numpy()
            own = unit(vectors[ids])
            for first, other in near:
                alike = np.einsum("nd,nd->n", own[first], own[other]) >= self.min_cosine
                if alike.any():
                    yield np.sort(np.stack([ids[first], ids[other]], axis=1)[alike], axis=1)

    def _vectors(self) -> np.ndarray:
        return np.memmap(self._folder.path / "vectors", np.float16, "r", shape=(self._photos, self._dim))


def whole_blocks(photos: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of `_GRID` in tables that cut no block."""
    rest: list[pa.RecordBatch] = []
    for batch in photos:
        some = pa.Table.from_batches([*rest, batch])
        last = int(np.flatnonzero(block_starts(some))[-1])
        rest = some.slice(last).to_batches()
        if last:
            yield some.slice(0, last)
    if rest:
        yield pa.Table.from_batches(rest)


def block_starts(photos: pa.Table) -> np.ndarray:
    """Whether each row is the first of its block, (n,) bool."""
    starts = np.ones(len(photos), bool)
    starts[1:] = np.any([np.diff(photos[name].to_numpy()) != 0 for name in _BLOCK], axis=0)
    return starts


def near_places(photos: pa.Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows of the same block whose faces are at the same place, by their distance in the table."""
    block = block_starts(photos).cumsum()
    of = {name: photos[name].to_numpy() for name in photos.column_names}
    for apart in range(1, _BLOCK_PHOTOS):
        near = block[apart:] == block[:-apart]
        if not near.any():
            return
        off = {name: np.abs(of[name][apart:] - of[name][:-apart]) for name in _MEASURES}
        near &= (off["x"] <= NEAR_PLACE) & (off["y"] <= NEAR_PLACE)
        near &= (off["size"] <= NEAR_SIZE) & (off["shape"] <= NEAR_SIZE)
        size = np.exp((of["size"][apart:] + of["size"][:-apart]) / 2)
        eyes = np.hypot(off["left_x"], off["left_y"]) + np.hypot(off["right_x"], off["right_y"])
        near &= ~(eyes > 2 * NEAR_EYES * size)                          # NaN where they are not known
        first = np.flatnonzero(near)
        yield first, first + apart


def linked(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The groups that pairs of ids (n, 2) link: the ids in them, sorted, the group of each, and its lowest id; (m,)."""
    ids, numbers = np.unique(pairs, return_inverse=True)
    first, other = numbers.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), bool), (first, other)), shape=(len(ids), len(ids)))
    groups = connected_components(graph, directed=False)[1].astype(np.int64)
    lowest = np.zeros(groups.max(initial=-1) + 1, np.int64)
    lowest[groups[::-1]] = ids[::-1]
    return ids, groups, lowest[groups]


def sign_codes(vectors: np.ndarray) -> np.ndarray:
    """For each vector (n, dim) its sides of _SIGNS random planes, as bits, for each grid; (n, _GRIDS) int32.

    Two vectors of cosine c are on one side of a plane with probability 1 − arccos(c) / π (Charikar, 2002).
    """
    planes = np.random.default_rng(0).standard_normal((vectors.shape[1], _GRIDS * _SIGNS), np.float32)
    bits = (vectors.astype(np.float32) @ planes >= 0).reshape(len(vectors), _GRIDS, _SIGNS)
    codes: np.ndarray = (bits @ (1 << np.arange(_SIGNS))).astype(np.int32)
    return codes


@dataclass(frozen=True, slots=True)
class _Faces:
    """The faces of a part, those of one image together.

    eyes: (n, 4) float32, NaN where they are not known. clear: large and level enough to compare within a photo.
    """

    uris: list[str]
    indices: list[int]
    boxes_xyxy: np.ndarray
    eyes: np.ndarray
    sides: np.ndarray
    clear: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, faces: pa.Table) -> _Faces:
        """From the rows of faces/, sorted by uri."""
        boxes = np.stack([faces[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
        eyes = np.stack([faces[name].to_numpy() for name in _EYES], axis=1)
        column = faces["embedding"].combine_chunks()
        vectors = pc.list_flatten(column).to_numpy().reshape(len(faces), -1) if len(faces) else np.zeros((0, 0))
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        clear = faces["align_ok"].to_numpy() & (sides >= SAME_MIN_PX)
        return cls(faces["uri"].to_pylist(), faces["face_index"].to_pylist(), boxes, eyes, sides, clear, vectors)

    def of_images(self) -> Iterator[tuple[int, int]]:
        """The first row of each image, and that after its last."""
        start = 0
        for row in range(1, len(self.uris) + 1):
            if row == len(self.uris) or self.uris[row] != self.uris[start]:
                yield start, row
                start = row

    def place(self, row: int, width: int, height: int) -> dict[str, object]:
        """Where a face is in its picture, in shares of it; sizes are logarithms, so that differences are ratios."""
        x1, y1, x2, y2 = self.boxes_xyxy[row].tolist()
        eyes = [None if np.isnan(value) else value / max(width, height) for value in self.eyes[row].tolist()]
        return dict(zip(("left_x", "left_y", "right_x", "right_y"), eyes, strict=True)) | {
            "face_index": self.indices[row], "x": (x1 + x2) / 2 / width, "y": (y1 + y2) / 2 / height,
            "size": float(np.log(max(self.sides[row], 1) / max(width, height))), "shape": float(np.log(width / height)),
        }
