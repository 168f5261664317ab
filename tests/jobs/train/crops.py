"""Crops for the tests of the embedder's training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Five landmarks of an upright face in a 144×144 crop.
LANDMARKS = np.array([[54.0, 62], [90, 62], [72, 82], [58, 100], [86, 100]])
LANDMARKS.flags.writeable = False


def table(path: Path, values: list[int], people: list[str] | None = None) -> Path:
    """A Parquet file of plain grey crops."""
    images = [cv2.imencode(".png", np.full((144, 144, 3), value, np.uint8))[1].tobytes() for value in values]
    columns = {"image": images, "landmarks": [LANDMARKS.tolist()] * len(values)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | ({"identity": people} if people is not None else {})), path)
    return path
