"""Batches as Arrow tables between two pools: one row per image, with its faces as lists.

Inside a pool batches are plain arrays. Chips and pixels are `large_binary`, because one block can exceed the 2 GiB that
32-bit offsets reach. Between two pools a whole batch is folded into one row: Ray hands over a fixed number of rows at a
time, but our batches are capped by bytes and differ in rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, on_host
from pipeline.geometry import CROP_PX
from pipeline.schemas import records_to_table, table_to_records

STAGES = ("decode", "detect", "keypoint", "align", "embed")


@dataclass(frozen=True, slots=True)
class _Field:
    """One per-face array of a FaceBatch: shape and type for one face, and the stages after which it is sent on."""

    name: str
    shape: tuple[int, ...]
    dtype: type
    after: tuple[str, ...]


_ALL = ("detect", "keypoint", "align", "embed")
_ALIGNED = ("align", "embed")
_FACE_FIELDS = (
    _Field("boxes_xyxy", (4,), np.float32, _ALL),
    _Field("scores", (), np.float32, _ALL),
    _Field("points5", (5, 2), np.float32, _ALL),
    _Field("chip_to_image", (2, 3), np.float64, ("detect", "keypoint")),
    _Field("eye_points", (12, 2), np.float32, ("keypoint", "align", "embed")),
    _Field("eye_spread", (), np.float32, ("keypoint", "align", "embed")),
    _Field("align_ok", (), np.uint8, _ALIGNED),
    _Field("roll_deg", (), np.float32, _ALIGNED),
    _Field("sharpness", (), np.float32, _ALIGNED),
    _Field("embedding_norms", (), np.float32, ("embed",)),
)


def images_to_table(batch: ImageBatch) -> pa.Table:
    """Decoded images as a table: the columns of the record, the pixels and their height and width."""
    table = records_to_table(batch.records)
    table = table.append_column("pixels", _binaries(batch.pixels))
    table = table.append_column("pixels_height", pa.array([p.shape[0] for p in batch.pixels], pa.int32()))
    return table.append_column("pixels_width", pa.array([p.shape[1] for p in batch.pixels], pa.int32()))


def table_to_images(table: pa.Table) -> ImageBatch:
    """The inverse of `images_to_table`. The pixels are read-only views of the table."""
    heights, widths = table["pixels_height"].to_pylist(), table["pixels_width"].to_pylist()
    pixels = tuple(
        flat.reshape(height, width, 3) if len(flat) else NO_PIXELS
        for flat, height, width in zip(_byte_views(table["pixels"]), heights, widths, strict=True)
    )
    return ImageBatch(table_to_records(table), pixels)


def faces_to_table(batch: FaceBatch, after: str) -> pa.Table:
    """Faces after the stage `after` as a table: one row per image, with a list for every per-face field."""
    table = records_to_table(batch.records)
    offsets = np.concatenate([[0], np.cumsum(batch.face_counts)]).astype(np.int64)
    for f in _FACE_FIELDS:
        if after in f.after:
            values: np.ndarray = np.ascontiguousarray(getattr(batch, f.name), f.dtype)
            table = table.append_column(f.name, _lists(offsets, _fixed(values.reshape(len(values), *f.shape))))
    if after in ("detect", "keypoint"):
        table = table.append_column("chips", _lists(offsets, _binaries(tuple(batch.chips))))
    if after == "align":
        table = table.append_column("crops", _lists(offsets, _binaries(on_host(batch.crops))))
    if after == "embed":
        # Without faces the length of an embedding is unknown; a plain list has the same type in all blocks.
        dim = batch.embeddings.shape[1]
        inner = pa.array(batch.embeddings.astype(np.float32, copy=False).reshape(-1))
        ends = np.arange(len(batch) + 1, dtype=np.int64) * dim
        table = table.append_column("embeddings", _lists(offsets, pa.LargeListArray.from_arrays(pa.array(ends), inner)))
    return table


def table_to_faces(table: pa.Table, after: str) -> FaceBatch:
    """The inverse of `faces_to_table` with the same `after`."""
    table = table.combine_chunks()
    face_counts = _column(table, "scores").value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    arrays: dict[str, Any] = {}
    for f in _FACE_FIELDS:
        if after in f.after:
            arrays[f.name] = _flat(_column(table, f.name).flatten(), f.dtype).reshape(-1, *f.shape)
    if "align_ok" in arrays:
        arrays["align_ok"] = arrays["align_ok"].astype(bool)
    if after in ("detect", "keypoint"):
        views = _byte_views(_column(table, "chips").flatten())
        arrays["chips"] = tuple(view.reshape(int(np.sqrt(len(view) // 3)), -1, 3) for view in views)
    if after == "align":
        views = _byte_views(_column(table, "crops").flatten())
        arrays["crops"] = np.array(views, np.uint8).reshape(len(views), CROP_PX, CROP_PX, 3)
    if after == "embed":
        flat = _flat(_column(table, "embeddings").flatten().flatten(), np.float32)
        arrays["embeddings"] = flat.reshape(int(face_counts.sum()), -1) if len(flat) else flat.reshape(0, 0)
    return FaceBatch(records=table_to_records(table), face_counts=face_counts, **arrays)


def fold(table: pa.Table) -> pa.Table:
    """The whole table as one row, so that Ray cannot split it or mix it with others."""
    rows = table.combine_chunks().to_struct_array()
    rows = rows.chunk(0) if rows.num_chunks else pa.array([], rows.type)
    return pa.table({"batch": _lists(np.array([0, len(rows)], np.int64), rows)})


def unfold(table: pa.Table) -> pa.Table:
    """The inverse of `fold`, for one or more rows; one row is not copied."""
    return pa.Table.from_struct_array(_column(table, "batch").flatten())


def _column(table: pa.Table, name: str) -> pa.Array:
    chunks = table[name]
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _fixed(values: np.ndarray) -> pa.Array:
    """An array (n, …) as n numbers, or as n fixed-size lists."""
    flat = pa.array(values.reshape(-1))
    size = int(np.prod(values.shape[1:], dtype=np.int64))
    return pa.FixedSizeListArray.from_arrays(flat, size) if values.ndim > 1 else flat


def _flat(values: pa.Array, dtype: type) -> np.ndarray:
    """The inverse of `_fixed`, flattened."""
    if pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    return numbers.astype(dtype, copy=False)


def _binaries(arrays: tuple[np.ndarray, ...] | np.ndarray) -> pa.Array:
    """uint8 arrays as large_binary; copies once."""
    ends = np.concatenate([[0], np.cumsum([a.size for a in arrays], dtype=np.int64)]).astype(np.int64)
    joined = np.concatenate([a.reshape(-1) for a in arrays]) if len(arrays) else np.zeros(0, np.uint8)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(ends), pa.py_buffer(joined)]
    )


def _byte_views(binaries: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """The bytes of each value as uint8, without a copy."""
    chunks = binaries.chunks if isinstance(binaries, pa.ChunkedArray) else [binaries]
    views: list[np.ndarray] = []
    for chunk in chunks:
        _, offsets_buffer, bytes_buffer = chunk.buffers()
        if not len(chunk):
            continue
        ends = np.frombuffer(offsets_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        content = np.frombuffer(bytes_buffer, np.uint8) if bytes_buffer is not None else np.zeros(0, np.uint8)
        views += [content[start:end] for start, end in pairwise(ends)]
    return views
