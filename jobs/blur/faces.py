"""The faces of the images that are copied, part by part of OUTPUT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.blur.choice import Choice
from jobs.blur.work import Image
from pipeline.output import ledger
from pipeline.people.outputs import reading_part
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """The faces of one image. boxes_xyxy: (n, 4) float32. hidden: (n,) bool, by the choice.

    everyone: the vectors of all faces in the image's part, (m, dim) float32. rows: of this image's there, (n,) int64.
    """

    boxes_xyxy: np.ndarray
    hidden: np.ndarray
    everyone: np.ndarray
    rows: np.ndarray


NO_FACES = FoundFaces(
    np.zeros((0, 4), np.float32), np.zeros(0, bool), np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
)


def with_faces(storage: Storage, images: Iterator[Image], choice: Choice) -> Iterator[tuple[Image, FoundFaces]]:
    """The images, which come part by part, with their faces. The faces of one part are held."""
    for part, of_part in groupby(images, key=lambda image: image.part):
        faces = _faces_of(storage, part, choice)
        for image in of_part:
            yield image, faces.get(image.row.uri, NO_FACES)


def known_faces(storage: Storage, choice: Choice) -> set[tuple[str, int]]:
    """The chosen faces that the output has."""
    known: set[tuple[str, int]] = set()
    uris = pa.array(sorted({uri for uri, _ in choice.faces}), pa.string())
    for part in ledger.committed_parts(storage) if len(uris) else ():
        with reading_part(storage, ledger.FACES, part) as file:
            rows = file.parquet.read(columns=["uri", "face_index"])
        rows = rows.filter(pc.is_in(rows["uri"], value_set=uris))
        known.update(zip(rows["uri"].to_pylist(), rows["face_index"].to_pylist(), strict=True))
    return known & choice.faces


def _faces_of(storage: Storage, part: str, choice: Choice) -> dict[str, FoundFaces]:
    with reading_part(storage, ledger.FACES, part) as file:
        table = file.parquet.read(columns=["uri", "face_index", "x1", "y1", "x2", "y2", "embedding"]).combine_chunks()
    if not len(table):
        return {}
    boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    everyone = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).astype(np.float32)
    indices = table["face_index"].to_pylist()
    rows_of: dict[str, list[int]] = {}
    for row, uri in enumerate(table["uri"].to_pylist()):
        rows_of.setdefault(uri, []).append(row)
    return {
        uri: FoundFaces(
            boxes[rows], np.array([choice.is_hidden(uri, indices[row]) for row in rows], bool), everyone, np.array(rows)
        )
        for uri, rows in rows_of.items()
    }
