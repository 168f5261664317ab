"""`jobs.bench scale`: an estimate for many images, from a finished output."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output import ledger
from pipeline.run.graph import MAX_BLOCKS
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import parse_input_uri

LIST_KEYS = 1000                 # that one request lists
ROWS_PER_PART = 2000             # the default's upper limit


def bench_scale(output: str, images: int) -> None:
    """Print requests, parts, bytes and hours for so many images like those of the output, on its machine."""
    uri, options = parse_input_uri(output)
    storage = open_storage(uri, options)
    throughput = json.loads(storage.read("run.json"))["throughput"]
    image_rows, image_bytes = measure_rows(storage, "images")
    face_rows, face_bytes = measure_rows(storage, "faces")
    faces = images * face_rows / image_rows
    per_s = throughput["images_per_s_after_start"] or throughput["images_per_s"]
    parts = math.ceil(images / ROWS_PER_PART)
    print(f"{images:,} images and {faces:,.0f} faces, as {image_rows:,} images with {face_rows:,} faces were:")
    for what, amount in (
        ("requests to list them", f"{math.ceil(images / LIST_KEYS):,}"),
        ("parts of 2,000 images, each two files", f"{parts:,}"),
        ("requests to write them", f"{2 * parts:,}"),
        ("images/ (the ledger)", f"{images * image_bytes / 1e9:,.0f} GB"),
        ("faces/", f"{faces * face_bytes / 1e12:,.2f} TB"),
        ("images that one block of the to-do has", f"{max(256, math.ceil(images / MAX_BLOCKS)):,}"),
        (f"machine hours at {per_s:,.1f} images/s", f"{images / per_s / 3600:,.0f}"),
    ):
        print(f"| {what} | {amount} |")


def measure_rows(storage: Storage, folder: str) -> tuple[int, float]:
    """The rows of a table, and the bytes of a row in a part of the usual size."""
    tables: list[pa.Table] = []
    rows = 0
    for file in storage.list(folder):
        with storage.open(file.path) as opened, pq.ParquetFile(opened) as parquet:
            if rows < ROWS_PER_PART:
                tables.append(parquet.read())
            rows += parquet.metadata.num_rows
    sample = pa.concat_tables(tables).slice(0, ROWS_PER_PART)
    return rows, len(ledger.to_parquet(sample)) / max(len(sample), 1)
