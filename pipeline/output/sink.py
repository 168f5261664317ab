"""The last step: write face batches as committed pairs of Parquet files, and give a receipt for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import geometry
from pipeline.batch import RETRIED, FaceBatch, Status
from pipeline.boundary import table_to_faces
from pipeline.output import lease, ledger
from pipeline.schemas import IMAGES, LATER_COLUMNS, faces_schema, records_to_table
from pipeline.storage import Storage

MAX_FACES_PER_PART = 50_000     # about 110 MB; for photos of crowds this limit comes before --rows-per-file


class WriteError(Exception):
    """A part could not be written, because the disk is full or the bucket does not answer."""


RECEIPT = pa.schema(
    [("part", pa.string()), ("images", pa.int64()), ("faces", pa.int64()), ("bytes", pa.int64())]
    + [(status.value, pa.int64()) for status in Status]
)


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The models as the columns of faces/ name them: `name@first 12 hex digits`."""

    detector: str
    keypointer: str
    embedder: str


@dataclass(frozen=True, slots=True)
class Sink:
    """Commits each table of faces as a part, and images to try again as a part of their own.

    A part with too many faces is divided. columns: those of `schemas.LATER_COLUMNS` that the output has.
    Raises WriteError, and LeaseLost if another run has taken over the output.
    """

    storage: Storage
    run_id: str
    fingerprint: str
    models: ModelNames
    embedding_dim: int
    embedding_dtype: str
    columns: Sequence[str] = LATER_COLUMNS

    def __call__(self, table: pa.Table) -> pa.Table:
        table = _each_once(table)
        again = pc.is_in(table["status"], value_set=pa.array([status.value for status in RETRIED]))
        receipts = [
            self._commit(kind, part)
            for kind, rows in (("part", table.filter(pc.invert(again))), ("retry", table.filter(again)))
            for part in table_to_faces(rows, after="embed").parts(MAX_FACES_PER_PART)
        ]
        return pa.Table.from_pylist(receipts, schema=RECEIPT)

    def _commit(self, kind: str, batch: FaceBatch) -> dict[str, object]:
        name = ledger.part_name(kind, self.run_id, [record.uri for record in batch.records])
        metadata = part_metadata(self.fingerprint, self.run_id)
        faces = faces_table(batch, self.models, self.embedding_dim, self.embedding_dtype)
        faces, images = self._as_begun(faces), self._as_begun(images_table(batch, self.run_id))
        try:
            ledger.write_pair(
                self.storage, name, faces.replace_schema_metadata(metadata), images.replace_schema_metadata(metadata),
                partial(lease.check_held, self.storage, self.run_id),
            )
        except OSError as error:      # Ray would replace the file name in the message of an OSError
            raise WriteError(str(error)) from error
        counts = {status.value: sum(record.status is status for record in batch.records) for status in Status}
        file_bytes = sum(record.file_bytes or 0 for record in batch.records)
        return {"part": name, "images": len(images), "faces": len(faces), "bytes": file_bytes, **counts}

    def _as_begun(self, table: pa.Table) -> pa.Table:
        """The table with the columns that the output began with."""
        later = set(LATER_COLUMNS) - set(self.columns)
        return table.drop_columns([name for name in table.column_names if name in later])


def part_metadata(fingerprint: str, run_id: str) -> dict[str, str]:
    """What the files of a part say of themselves."""
    return {
        "facelake.fingerprint": fingerprint,
        "facelake.run_id": run_id,
        "facelake.embedding": "unit vectors: their dot product is the cosine similarity",
    }


def _each_once(table: pa.Table) -> pa.Table:
    """The first row of every uri: an actor that died and was replaced may send some rows twice."""
    if pc.count_distinct(table["uri"]).as_py() == len(table):
        return table
    rows = pa.table({"uri": table["uri"], "row": np.arange(len(table))})
    first = rows.group_by("uri").aggregate([("row", "min")])["row_min"]
    return table.filter(pc.is_in(rows["row"], value_set=first.combine_chunks()))


def images_table(batch: FaceBatch, run_id: str) -> pa.Table:
    """The rows of images/, sorted by uri."""
    table = records_to_table(batch.records)
    return table.append_column(IMAGES.field("run_id"), pa.array([run_id] * len(table))).cast(IMAGES).sort_by("uri")


def faces_table(batch: FaceBatch, models: ModelNames, dim: int, embedding_dtype: str) -> pa.Table:
    """The rows of faces/, sorted by uri and face_index."""
    schema = faces_schema(dim, embedding_dtype)
    n = len(batch)
    uris = np.array([record.uri for record in batch.records], object)
    left_eye, right_eye = geometry.eye_centres(batch.eye_points)
    vectors = batch.embeddings.astype(embedding_dtype).reshape(n, dim)
    columns = {
        "uri": np.repeat(uris, batch.face_counts),
        "face_index": np.concatenate(
            [np.zeros(0, np.int32), *(np.arange(count, dtype=np.int32) for count in batch.face_counts)]
        ),
        **{name: batch.boxes_xyxy[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        "det_score": batch.scores,
        "left_eye_x": left_eye[:, 0],
        "left_eye_y": left_eye[:, 1],
        "right_eye_x": right_eye[:, 0],
        "right_eye_y": right_eye[:, 1],
        "eye_points": pa.FixedSizeListArray.from_arrays(pa.array(batch.eye_points.reshape(-1)), 24),
        "eye_spread": pa.array(batch.eye_spread, from_pandas=True),        # NaN becomes null
        "roll_deg": batch.roll_deg,
        "eye_distance_px": np.linalg.norm(right_eye - left_eye, axis=1),
        "align_ok": batch.align_ok,
        "sharpness": batch.sharpness,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        "embedding_norm": batch.embedding_norms,
        "detector": [models.detector] * n,
        "keypointer": [models.keypointer] * n,
        "embedder": [models.embedder] * n,
        "points5": _known_points(batch.points5),
    }
    arrays = [
        column.cast(field.type) if isinstance(column, pa.Array) else pa.array(column, field.type)
        for field, column in zip(schema, (columns[name] for name in schema.names), strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema).sort_by([("uri", "ascending"), ("face_index", "ascending")])


def _known_points(points: np.ndarray) -> pa.Array:
    """Points (n, 5, 2) as a column; null for a face without them."""
    unknown = pa.array(~np.isfinite(points).all((1, 2)))
    return pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), 2 * points.shape[1], mask=unknown)
