"""All faces of an output, as a grouping needs them: vectors on a temporary disk, the rest in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.output import claim, ledger
from pipeline.people.likeness import unit
from pipeline.people.outputs import reading_part
from pipeline.people.vectors import vector_blocks
from pipeline.storage import Storage

FACE_COLUMNS = ("x1", "y1", "x2", "y2", "sharpness", "align_ok")
VECTOR_TYPE = np.float16     # moves a cosine by less than 1e-4, in half the space


@dataclass(frozen=True, slots=True)
class Gallery:
    """Faces, n of them, in the order of the parts.

    uris: the images' names. photos: (n,) the number of each face's image in `uris`. face_index: (n,). clear: (n,)
    whether a face is good enough to begin a group. file: the vectors. dim: their number of values.
    """

    uris: pa.Array
    photos: np.ndarray
    face_index: np.ndarray
    clear: np.ndarray
    file: Path
    dim: int

    def __len__(self) -> int:
        return len(self.photos)

    def vectors(self) -> np.ndarray:
        """The vectors (n, dim) float16, of length 1 or zero. Memory holds what is read, until they are let go."""
        if not len(self) * self.dim:
            return np.zeros((len(self), self.dim), VECTOR_TYPE)
        return np.memmap(self.file, VECTOR_TYPE, mode="r", shape=(len(self), self.dim))

    def find(self, uris: pa.Array | pa.ChunkedArray, face_index: np.ndarray) -> np.ndarray:
        """The numbers of the faces with these names, (m,); −1 for those that are not here."""
        photos = pc.fill_null(pc.index_in(uris, value_set=self.uris), -1).to_numpy(zero_copy_only=False)
        step = max(int(face_index.max(initial=0)), int(self.face_index.max(initial=0))) + 1
        mine = self.photos.astype(np.int64) * step + self.face_index
        wanted = photos.astype(np.int64) * step + face_index
        order = np.argsort(mine)
        places = np.searchsorted(mine, wanted, sorter=order)
        found = order[np.minimum(places, len(order) - 1)] if len(order) else np.zeros(len(wanted), np.int64)
        there = (photos >= 0) & (face_index >= 0) & (places < len(order))
        there[there] = mine[found[there]] == wanted[there]
        return np.where(there, found, -1)


@dataclass(frozen=True, slots=True)
class ClearFace:
    """Which faces may begin a group: those that are aligned, large and sharp. Others look alike though they are not.

    side_px: the least shorter side of a box. A box without area was not measured. sharpness: of the crop; less is
    blurred, unless half of all faces are not twice as sharp.
    """

    side_px: float
    sharpness: float

    def __call__(self, rows: pa.Table) -> np.ndarray:
        """Whether each row of faces/ is such a face, (n,)."""
        x1, y1, x2, y2, sharpness, align_ok = (rows[name].to_numpy() for name in FACE_COLUMNS)
        side = np.minimum(x2 - x1, y2 - y1)
        sharp = np.nan_to_num(sharpness.astype(np.float32), nan=np.inf)      # null: not measured
        least = min(self.sharpness, float(np.median(sharp)) / 2) if len(sharp) else 0
        clear: np.ndarray = ((side >= self.side_px) | (side <= 0)) & (sharp >= least) & align_ok.astype(bool)
        return clear


CLEAR = ClearFace(side_px=16, sharpness=6)     # without those below, groups of faces made small or blurred got better


def gallery_of(vectors: np.ndarray, folder: Path) -> Gallery:
    """A gallery of vectors (n, dim), each of another photo, all clear. folder: for the vectors, temporary."""
    count, dim = vectors.shape
    unit(vectors).astype(VECTOR_TYPE).tofile(folder / "vectors")
    names = pa.array(map(str, range(count)), pa.string())
    return Gallery(
        names, np.arange(count), np.zeros(count, np.int64), np.ones(count, bool), folder / "vectors", dim
    )


def read_gallery(
    storage: Storage, parts: Sequence[str], folder: Path, is_clear: Callable[[pa.Table], np.ndarray],
    progress: Callable[[int, int], None],
) -> Gallery:
    """The committed faces of these parts.

    folder: for the vectors, temporary. progress: is told the number of parts that are read, and of all.
    Raises OutputError for damaged parts, and for vectors of two dimensions or embedders.
    """
    tables, embedders = [_ROWS.empty_table()], set()
    seen: set[str] | None = None if claim.is_finished(storage) else set()
    with (folder / "vectors").open("wb") as file:
        for number, part in enumerate(parts, 1):
            table, embedder = _read_part(storage, part, file, seen)
            tables.append(table)
            embedders |= embedder
            if len(embedders) > 1:
                (dim, name), (other_dim, other) = sorted(embedders)
                raise OutputError(
                    f"{storage.root} has vectors of {dim} values of the embedder {name} and, in the part {part}, of "
                    f"{other_dim} of {other}: vectors of two embedders or dimensions cannot be compared"
                )
            progress(number, len(parts))
    rows = pa.concat_tables(tables)
    photos = rows["uri"].combine_chunks().dictionary_encode()
    return Gallery(
        photos.dictionary, photos.indices.to_numpy(), rows["face_index"].to_numpy(), is_clear(rows),
        folder / "vectors", next((dim for dim, _ in embedders), 0),
    )


_ROWS = pa.schema([
    pa.field("uri", pa.string()), pa.field("face_index", pa.int32()),
    *(pa.field(name, pa.float32()) for name in FACE_COLUMNS[:-1]), pa.field("align_ok", pa.bool_()),
])


def _read_part(
    storage: Storage, part: str, file: BinaryIO, seen: set[str] | None
) -> tuple[pa.Table, set[tuple[int, str]]]:
    """The committed faces of a part that no earlier part has, and their dimensions and embedders.

    The vectors go to the file. seen: the images of earlier parts, where a killed run may have written some twice.
    """
    with reading_part(storage, ledger.IMAGES, part) as images:
        committed = images.parquet.read(columns=["uri"])["uri"].combine_chunks()
    if seen is not None:
        committed = pa.array([uri for uri in committed.to_pylist() if uri not in seen], pa.string())
        seen.update(committed.to_pylist())
    with reading_part(storage, ledger.FACES, part) as faces:
        kind = faces.parquet.schema_arrow.field("embedding").type
        dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        table = faces.parquet.read(columns=[*_ROWS.names, "embedder"]).replace_schema_metadata(None)
        kept, start = pc.is_in(table["uri"], value_set=committed), 0
        counts = kept.to_numpy()
        for vectors in vector_blocks(faces.content, faces.parquet, "embedding", dim):
            block = unit(np.where(np.isfinite(vectors), vectors, 0))
            file.write(block[counts[start : start + len(block)]].astype(VECTOR_TYPE).tobytes())
            start += len(block)
    table = table.filter(kept)
    embedders = {(dim, str(name)) for name in table["embedder"].unique().to_pylist()}
    return table.select(_ROWS.names).cast(_ROWS), embedders
