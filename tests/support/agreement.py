"""How well the rows of two engines agree, by the tolerance that the project promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MIN_FACE_PX = 40       # shorter box side; smaller faces are not compared
MIN_IOU, MIN_COSINE = 0.97, 0.98
MIN_SHARE = 0.95       # of the compared faces
MAY_DIFFER = ["run_id", "n_faces"]


def assert_outputs_agree(output: Path, expected: Path) -> None:
    """Check that both outputs have the same images, and that their faces agree in both directions."""
    images, expected_images = (
        pq.read_table(folder / "images").drop_columns(MAY_DIFFER).sort_by("uri") for folder in (output, expected)
    )
    assert images.equals(expected_images)
    faces, expected_faces = (pq.read_table(folder / "faces") for folder in (output, expected))
    assert agreeing_share(faces, expected_faces) >= MIN_SHARE
    assert agreeing_share(expected_faces, faces) >= MIN_SHARE


def agreeing_share(faces: pa.Table, expected: pa.Table) -> float:
    """The share of the expected faces that `faces` has too, with nearly the same box and embedding."""
    found = by_uri(faces)
    agreeing = []
    for uri, (boxes, embeddings) in by_uri(expected).items():
        for box, embedding in zip(boxes, embeddings, strict=True):
            if min(box[2:] - box[:2]) < MIN_FACE_PX:
                continue
            if uri not in found:
                agreeing.append(False)
                continue
            candidates, vectors = found[uri]
            ious = box_iou(candidates, box)
            best = int(ious.argmax())
            agreeing.append(bool(ious[best] >= MIN_IOU and vectors[best] @ embedding >= MIN_COSINE))
    assert agreeing, f"no face of {MIN_FACE_PX} px or more to compare"
    return float(np.mean(agreeing))


def by_uri(faces: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes (n, 4) and embeddings (n, dim) of every image that has faces."""
    boxes = np.stack([faces[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    embeddings = np.array(faces["embedding"].to_pylist())
    uris = np.array(faces["uri"].to_pylist())
    return {str(uri): (boxes[uris == uri], embeddings[uris == uri]) for uri in np.unique(uris)}


def box_iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """IoU (n,) of boxes (n, 4) with one box, x1 y1 x2 y2."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(0).prod(axis=1)
    ious: np.ndarray = shared / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared)
    return ious
