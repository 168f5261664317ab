"""`jobs.bench decode-scale`: what decoding JPEGs at half size costs in faces found and in accuracy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from jobs.bench.in_process import build_stages, default_config, no_seconds, run_stages
from models.metrics import pair_cosines, tpr_at_fpr
from pipeline.batch import FaceBatch, TodoRow
from pipeline.settings import RowSettings

CELL_PX = 144

# Who is in which cell of which mosaic: path, column, row.
People = Mapping[tuple[str, int, int], str]


def bench_decode_scale(faces: Path) -> None:
    """Print faces found and true positive rates, in mosaics of faces of 93 px.

    The mosaics have the size at which decoding at 1/2 leaves the least: twice the side that must remain.
    """
    table = pq.read_table(faces, columns=["image", "identity"])
    cells = math.ceil(4 * RowSettings().detect_px / CELL_PX)
    print(f"photos of {cells * CELL_PX:,} px")
    with tempfile.TemporaryDirectory() as folder:
        rows, people = write_mosaics(table["image"].to_pylist(), table["identity"].to_pylist(), Path(folder), cells)
        print("| decoding | scale | faces found | TPR at FPR 0.01 | at 0.001 |\n|---|---|---|---|---|")
        for scale in ("full", "auto"):
            print_scale(scale, rows, people)


def print_scale(decode_scale: str, rows: list[TodoRow], people: People) -> None:
    """Run all stages on the mosaics and print a line."""
    vectors, found, scales = [], [], set()
    stages = build_stages(default_config("cpu", RowSettings(decode_scale=decode_scale)))
    for batch in run_stages(stages, rows, no_seconds()):
        scales |= {record.decode_scale for record in batch.records if record.decode_scale is not None}
        for person, vector in recognised(batch, people):
            found.append(person)
            vectors.append(vector)
    cosines, same = pair_cosines(np.array(vectors), np.array(found))
    rates = tpr_at_fpr(cosines, same, (0.01, 0.001))
    print(f"| {decode_scale} | {', '.join(f'{s:g}' for s in sorted(scales))} | {len(found) / len(people):.4f} | "
          f"{rates[0.01][0]:.4f} | {rates[0.001][0]:.4f} |")


def recognised(batch: FaceBatch, people: People) -> Iterator[tuple[str, np.ndarray]]:
    """The person and the vector of every face in a cell."""
    if batch.embeddings is None:
        raise ValueError("the batch has no embeddings")
    records = np.repeat(np.arange(len(batch.records)), batch.face_counts)
    for record, box_xyxy, vector in zip(records, batch.boxes_xyxy, batch.embeddings, strict=True):
        person = people.get((batch.records[record].uri, *cell(box_xyxy)))
        if person is not None:
            yield person, vector


def write_mosaics(
    images: list[bytes], people: list[str], folder: Path, cells: int
) -> tuple[list[TodoRow], dict[tuple[str, int, int], str]]:
    """Write JPEGs of cells × cells faces. Returns the rows to read, and who is in which cell."""
    rows, who = [], {}
    for start in range(0, len(images), cells * cells):
        path = str(folder / f"{start}.jpg")
        canvas = np.full((cells * CELL_PX, cells * CELL_PX, 3), 114, np.uint8)
        for i in range(min(cells * cells, len(images) - start)):
            row, column = divmod(i, cells)
            top, left = row * CELL_PX, column * CELL_PX
            canvas[top : top + CELL_PX, left : left + CELL_PX] = resized(images[start + i])
            who[path, column, row] = people[start + i]
        cv2.imwrite(path, canvas, [cv2.IMWRITE_JPEG_QUALITY, 92])
        rows.append(TodoRow(path))
    return rows, who


def resized(content: bytes) -> np.ndarray:
    """An image in the size of a cell, BGR."""
    face = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if face is None:
        raise ValueError("an image of FACES.parquet cannot be decoded")
    return cv2.resize(face, (CELL_PX, CELL_PX))


def cell(box_xyxy: np.ndarray) -> tuple[int, int]:
    """Column and row of the cell with the middle of a box."""
    x1, y1, x2, y2 = box_xyxy
    return int((x1 + x2) / 2 // CELL_PX), int((y1 + y2) / 2 // CELL_PX)
