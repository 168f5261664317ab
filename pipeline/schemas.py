"""The Arrow schemas of the tables we read and write. Types are declared, not inferred. Columns are only added."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from pipeline.batch import ImageRecord, Status

SCHEMA_VERSION = 1

TIMESTAMP = pa.timestamp("us", tz="UTC")

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("container", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", TIMESTAMP),
    ]
)

IMAGE_RECORD = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("exif_orientation", pa.int8()),
        pa.field("rotation_deg", pa.int16()),
        pa.field("decode_scale", pa.float32()),
        pa.field("detect_pass", pa.int8()),
        pa.field("n_faces", pa.int32()),
        pa.field("faces_truncated", pa.bool_()),
        pa.field("file_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", TIMESTAMP),
        pa.field("sha256", pa.string()),
        pa.field("tiles", pa.int32()),
    ]
)
IMAGES = IMAGE_RECORD.append(pa.field("run_id", pa.string(), nullable=False))

LATER_COLUMNS = ("tiles", "eye_spread", "points5")     # that version 0.1.0 did not have; an output keeps its own

EMBEDDING_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


def faces_schema(dim: int, embedding_dtype: str) -> pa.Schema:
    """The schema of faces/ for embeddings of `dim` values of type "float32" or "float16"."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("face_index", pa.int32(), nullable=False),
            pa.field("x1", pa.float32(), nullable=False),
            pa.field("y1", pa.float32(), nullable=False),
            pa.field("x2", pa.float32(), nullable=False),
            pa.field("y2", pa.float32(), nullable=False),
            pa.field("det_score", pa.float32(), nullable=False),
            pa.field("left_eye_x", pa.float32()),
            pa.field("left_eye_y", pa.float32()),
            pa.field("right_eye_x", pa.float32()),
            pa.field("right_eye_y", pa.float32()),
            pa.field("eye_points", pa.list_(pa.float32(), 24)),
            pa.field("eye_spread", pa.float32()),
            pa.field("roll_deg", pa.float32()),
            pa.field("eye_distance_px", pa.float32()),
            pa.field("align_ok", pa.bool_(), nullable=False),
            pa.field("sharpness", pa.float32()),
            pa.field("embedding", pa.list_(EMBEDDING_TYPES[embedding_dtype], dim), nullable=False),
            pa.field("embedding_norm", pa.float32()),
            pa.field("detector", pa.string(), nullable=False),
            pa.field("keypointer", pa.string(), nullable=False),
            pa.field("embedder", pa.string(), nullable=False),
            pa.field("points5", pa.list_(pa.float32(), 10)),
        ]
    )


def records_to_table(records: tuple[ImageRecord, ...]) -> pa.Table:
    """Image records as a table with the schema `IMAGE_RECORD`."""
    columns = {name: [getattr(record, name) for record in records] for name in IMAGE_RECORD.names}
    return pa.Table.from_pydict(columns, schema=IMAGE_RECORD)


def table_to_records(table: pa.Table) -> tuple[ImageRecord, ...]:
    """The image records of a table that has the columns of `IMAGE_RECORD`; other columns are ignored."""
    names = [f.name for f in fields(ImageRecord)]
    return tuple(
        ImageRecord(**row | {"status": Status(row["status"])}) for row in table.select(names).to_pylist()
    )
