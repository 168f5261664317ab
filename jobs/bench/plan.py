"""`jobs.bench plan`: how long jobs.extract plans with millions of images before its first part."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.scale import ROWS_PER_PART
from jobs.command import Broke
from pipeline import schemas
from pipeline.input.rows import listing_table
from pipeline.output import ledger
from pipeline.storage import Storage, open_storage

GREY_PNG = bytes.fromhex(   # one pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)
EXTRACT = [sys.executable, "-m", "jobs.extract"]
SAMPLE_S = 0.1
ROW_GROUP_ROWS = 1 << 20     # as pyarrow writes a table


def bench_plan(listed: int, done: int) -> None:
    """Run jobs.extract on a manifest of files that do not exist, most of them in the ledger, until its first part."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:      # an actor may still write
        top = Path(folder)
        parts = make_output(top)
        make_manifest(top, listed, done, parts)
        seconds, memory, spilled = run_to_first_part(top, parts.count)
    print(f"{listed:,} listed, {done:,} done before: first new part after {seconds:.1f} s, "
          f"the driver holds up to {memory / 2**30:.2f} GiB, and {spilled / 2**30:.2f} GiB on disk")


class PartMaker:
    """Writes parts of images without faces, all like one that the job wrote."""

    def __init__(self, storage: Storage, no_faces: pa.Table, image: dict[str, Any]) -> None:
        self._storage, self._no_faces, self._image = storage, no_faces, image
        self.count = len(ledger.committed_parts(storage))

    def add(self, uris: list[str]) -> None:
        """Write a part of these images."""
        images = pa.Table.from_pylist([self._image], schema=schemas.IMAGES).take([0] * len(uris))
        images = images.set_column(0, schemas.IMAGES.field("uri"), pa.array(uris))
        self.count += 1
        name = ledger.part_name("part", "bench", uris)
        ledger.write_pair(self._storage, name, self._no_faces, images, check=lambda: None)


def make_output(top: Path) -> PartMaker:
    """An output of one grey pixel, made by the job itself."""
    photos, output = top / "photos", top / "out"
    photos.mkdir()
    (photos / "grey.png").write_bytes(GREY_PNG)
    subprocess.run([*EXTRACT, str(photos), str(output)], stderr=subprocess.DEVNULL, check=True)
    [image] = pq.read_table(output / "images").to_pylist()
    return PartMaker(open_storage(str(output)), pq.read_table(output / "faces").slice(0, 0), image)


def make_manifest(top: Path, listed: int, done: int, parts: PartMaker) -> None:
    """Write the manifest, in row groups as large as pyarrow's own, and parts for the first `done` images."""
    with pq.ParquetWriter(top / "manifest.parquet", schemas.LISTING) as manifest:
        for start in range(0, listed, ROW_GROUP_ROWS):
            uris = [f"/photos/{i // 1000:06}/{i:012}.jpg" for i in range(start, min(start + ROW_GROUP_ROWS, listed))]
            manifest.write_table(listing_table({"uri": uris}))
            known = uris[: max(done - start, 0)]
            for first in range(0, len(known), ROWS_PER_PART):
                parts.add(known[first : first + ROWS_PER_PART])


def run_to_first_part(top: Path, parts: int) -> tuple[float, int, int]:
    """Seconds until the first new part, and the peak bytes of the driver's memory and of its spill files.

    Raises Broke if the job ends before that.
    """
    images, started = top / "out" / "images", time.monotonic()
    job = subprocess.Popen(
        [*EXTRACT, str(top / "manifest.parquet"), str(top / "out")], stderr=subprocess.PIPE, text=True
    )
    driver = psutil.Process(job.pid)
    memory = spilled = 0
    while len(os.listdir(images)) <= parts and job.poll() is None:   # noqa: PTH208  (iterdir is slower)
        memory = max(memory, driver.memory_info().rss)
        spilled = max(spilled, bytes_of(top.parent.glob("facelake-scratch-*/*")))
        time.sleep(SAMPLE_S)
    seconds, ended = time.monotonic() - started, job.poll() is not None
    job.terminate()
    printed = job.communicate()[1]
    if ended:
        raise Broke(f"jobs.extract ended before its first part:\n{printed}")
    print(printed)
    return seconds, memory, spilled


def bytes_of(paths: Iterable[Path]) -> int:
    """The size of these files. A file can be gone by now."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
