"""The data of evaluations and trainings: checked tables, photos, and outputs of `jobs.extract`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from models.store import TASKS, WeightCard, read_card
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa


class DataError(UserError):
    """The data cannot be used; the message says why, and what is needed."""


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """The columns of a Parquet file, of all Parquet files in a folder, or of a CSV file (all text).

    optional: columns that are read if every file has them. Raises DataError for a file that is missing or cannot be
    read, a missing column, an empty value in a column, and no row.
    """
    import pyarrow as pa

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise DataError(f"{path} {'holds no *.parquet' if path.exists() else 'does not exist'}")
    tables = [_read_file(file, [*columns, *optional]) for file in files]
    for file, table in zip(files, tables, strict=True):
        if missing := [column for column in columns if column not in table.column_names]:
            raise DataError(f"{file} has no column {', '.join(missing)}; needed: {', '.join(columns)}")
        if empty := [column for column in columns if table[column].null_count]:
            raise DataError(f"{file}: {table[empty[0]].null_count} rows have no {empty[0]}; fill or remove them")
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    joined = pa.concat_tables([table.select(shared) for table in tables], promote_options="permissive")
    if not len(joined):
        raise DataError(f"{path} has no row")
    return joined


def read_batches(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, 64 at a time, for files larger than the memory. Otherwise as `read_table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise DataError(f"{file} {'is not a file' if file.exists() else 'does not exist'}")
    try:
        parquet = pq.ParquetFile(file)
        known = parquet.schema_arrow.names
        if missing := [column for column in columns if column not in known]:
            raise DataError(f"{file} has no column {', '.join(missing)}; needed: {', '.join(columns)}")
        yield from parquet.iter_batches(64, columns=[*columns, *(name for name in optional if name in known)])
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be read, Parquet is expected: {first_line(error)}") from None


def _read_file(file: Path, columns: Sequence[str]) -> pa.Table:
    """The columns that the file has."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() == ".csv":
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
            table = pyarrow.csv.read_csv(file, convert_options=as_text)
            return table.select([name for name in table.column_names if name in columns])
        known = pq.read_schema(file).names
        return pq.read_table(file, columns=[name for name in known if name in columns])
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be read, Parquet or .csv is expected: {first_line(error)}") from None


def decode_image(content: bytes | None) -> np.ndarray | None:
    """The pixels (h, w, 3) uint8 RGB of an encoded image, upright; None if it cannot be read."""
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if content else None
    except cv2.error:       # more pixels than OpenCV takes
        return None


def decode(content: bytes, name: str) -> np.ndarray:
    """As `decode_image`, but raises DataError with the image's name."""
    pixels = decode_image(content)
    if pixels is None:
        raise DataError(f"{name} cannot be read as an image; mend or remove it")
    return pixels


def decode_column(table: pa.Table, path: Path) -> list[np.ndarray]:
    """The pixels of the column `image`. path: the table's, for messages. Raises DataError."""
    return [decode(value.as_py(), f"image {i} of {path}") for i, value in enumerate(table["image"])]


def point_column(table: pa.Table, column: str, count: int, path: Path | str) -> np.ndarray:
    """A column with `count` points x, y a row, (n, count, 2) float64. path: for messages. Raises DataError."""
    try:
        return np.array(table[column].to_pylist(), np.float64).reshape(len(table), count, 2)
    except (ValueError, TypeError):
        raise DataError(f"{path}: every row of {column} must be {count} pairs x, y in pixels") from None


def as_boxes(value: list[list[float]] | None, column: str) -> np.ndarray:
    """A row's boxes, (n, 4) float64; (0, 4) for None. Raises DataError for another shape."""
    try:
        return np.array(value or [], np.float64).reshape(-1, 4)
    except (ValueError, TypeError):
        raise DataError(f"{column} must be lists of x1, y1, x2, y2 in pixels, got {value}") from None


# ---- outputs of jobs.extract -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExtractedImage:
    """An image of an extract output: its faces, and its width and height in pixels, None if it could not be read.

    faces: rows of faces/ with at least `x1 y1 x2 y2`, in pixels of the image.
    """

    size_wh: tuple[int, int] | None
    faces: list[dict[str, Any]]

    def boxes_xyxy(self) -> np.ndarray:
        """(n, 4) float32."""
        return np.array([[face[side] for side in BOX] for face in self.faces], np.float32).reshape(-1, 4)

    def middle_face(self) -> dict[str, Any] | None:
        """The face nearest the middle of the image, None without faces."""
        if not self.faces or self.size_wh is None:
            return None
        boxes = self.boxes_xyxy()
        off = (boxes[:, :2] + boxes[:, 2:] - np.array(self.size_wh)) / 2
        return self.faces[int(np.hypot(*off.T).argmin())]


BOX = ("x1", "y1", "x2", "y2")


def is_output(path: Path) -> bool:
    """Whether a folder is an output of `jobs.extract`."""
    return (path / "images").is_dir() and (path / "faces").is_dir()


def read_output(path: Path, names: Sequence[str], columns: Sequence[str]) -> list[ExtractedImage]:
    """The images of these names in an extract output, in this order, with the box and `columns` of their faces.

    A name is the end of a uri, with or without suffix. Raises DataError if path is no output or holds no face, and if a
    name has no image or several.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not is_output(path):
        raise DataError(f"{path} is no output of jobs.extract: it has no images/ and faces/")
    images = read_table(path / "images", ["uri"], ["width", "height"]).to_pylist()
    uris = _uris_of([row["uri"] for row in images], names, path)
    size_wh = {row["uri"]: (row["width"], row["height"]) for row in images if row.get("width") is not None}
    faces_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    faces = read_table(path / "faces", ["uri", *BOX, *columns])
    for face in faces.filter(pc.is_in(faces["uri"], value_set=pa.array(uris, pa.string()))).to_pylist():
        faces_of[face["uri"]].append(face)
    return [ExtractedImage(size_wh.get(uri), faces_of[uri]) for uri in uris]


def _uris_of(uris: Iterable[str], names: Sequence[str], origin: Path) -> list[str]:
    """The uri of each name."""
    depths = {name.count("/") + 1 for name in names}
    known: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        for depth in depths:
            end = "/".join(uri.split("/")[-depth:])
            known[end].add(uri)
            known[str(PurePosixPath(end).with_suffix(""))].add(uri)
    if absent := [name for name in names if name not in known]:
        raise DataError(
            f"{origin} lacks {len(absent)} of the {len(names)} images named in the annotations, first {absent[0]}; run "
            "extract over all of them"
        )
    if several := [name for name in names if len(known[name]) > 1]:
        raise DataError(f"{origin} holds several images {several[0]}; put the folder before the name, as folder/name")
    return [next(iter(known[name])) for name in names]


def made_by(images: Iterable[ExtractedImage], role: str) -> str:
    """The identity of the model that made the faces, from their column `role`. Raises DataError without faces."""
    for image in images:
        for face in image.faces:
            return str(face[role])
    raise DataError("the output has no face in any of these images: do the annotations belong to it?")


def card_of(weights_dir: Path, role: str, identity: str) -> WeightCard:
    """The card of the model with this identity. Raises WeightsError, and DataError for other weights."""
    card = read_card(weights_dir, role, identity.rpartition(f"-{TASKS[role]}@")[0])
    if card.identity != identity:
        raise DataError(
            f"the output was made by {identity}, but {weights_dir} holds {card.identity}: name the folder with the "
            "output's weights with --weights, or run extract again"
        )
    return card
