"""Outputs of jobs.extract with boxes of our choice, made without a job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.output import claim, ledger, sink
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import Storage, open_storage

Box = tuple[float, float, float, float]


def write_output(
    root: object, images: Mapping[str, tuple[bytes, Sequence[Box]]], *, others: Mapping[str, Status] | None = None,
    truncated: bool = False, vectors: np.ndarray | None = None, parquet: Mapping[str, str | None] | None = None,
) -> Storage:
    """A finished output. images: by uri, the file and its faces' boxes. others: images without faces, by status.

    parquet: the columns of images in Parquet files.
    """
    storage = open_storage(str(root))
    cards = read_models(None, DEFAULT_MODELS).by_role
    claim.claim(storage, fingerprinted(RowSettings(), {role: card.fingerprint() for role, card in cards.items()}))
    records = [
        ImageRecord(
            uri, Status.OK if boxes else Status.NO_FACE, sha256=hashlib.sha256(content).hexdigest(), width=100,
            height=100, n_faces=len(boxes), faces_truncated=truncated, file_bytes=len(content),
        )
        for uri, (content, boxes) in images.items()
    ]
    records += [ImageRecord(uri, status) for uri, status in (others or {}).items()]
    boxes = [box for _, of_image in images.values() for box in of_image]
    n = len(boxes)
    if vectors is None:
        vectors = np.eye(512, dtype=np.float32)[:n]
    batch = FaceBatch(
        tuple(records), np.array([*(len(boxes) for _, boxes in images.values()), *(0 for _ in others or ())], np.int64),
        np.array(boxes, np.float32).reshape(n, 4), np.full(n, 0.9, np.float32),
        eye_points=np.zeros((n, 12, 2), np.float32), align_ok=np.ones(n, bool), roll_deg=np.zeros(n, np.float32),
        eye_spread=np.zeros(n, np.float32), sharpness=np.ones(n, np.float32),
        embeddings=vectors.reshape(n, 512), embedding_norms=np.ones(n, np.float32),
    )
    names = sink.ModelNames(**{role: card.identity for role, card in cards.items()})
    if records:
        ledger.write_pair(
            storage, ledger.part_name("part", "r1", [record.uri for record in records]),
            sink.faces_table(batch, names, 512, "float32"), sink.images_table(batch, "r1"), lambda: None,
        )
    storage.write("run.json", json.dumps({"run_id": "r1", "listing": {"parquet": parquet}}).encode())
    return storage
