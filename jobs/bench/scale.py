"""The benchmarks of `jobs.bench` that concern listing and planning: millions of names, made here."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schemas
from pipeline.input.manifest_folder import PART_ROWS
from pipeline.input.rows import listing_table
from pipeline.output import ledger
from pipeline.run.graph import MAX_BLOCKS
from pipeline.storage import open_storage
from pipeline.storage.clients import s3_client
from pipeline.storage.uris import StoreOptions, parse_input_uri

GREY_PNG = bytes.fromhex(   # one pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)
LIST_KEYS = 1000                 # that one request lists
ROWS_PER_PART = 2000             # the most that a part has by default


def bench_scale(output: str, images: int) -> None:
    """What so many images like those of a finished output come to: requests, parts, bytes, hours on that machine."""
    uri, options = parse_input_uri(output)
    storage = open_storage(uri, options)
    run = json.loads(storage.read("run.json"))
    rows, row_bytes = {}, {}
    for folder in ("images", "faces"):
        tables, rows[folder] = [], 0
        for file in storage.list(folder):
            with storage.open(file.path) as opened, pq.ParquetFile(opened) as parquet:
                if rows[folder] < ROWS_PER_PART:         # as they lie in a part of the usual size
                    tables.append(parquet.read())
                rows[folder] += parquet.metadata.num_rows
        sample = pa.concat_tables(tables).slice(0, ROWS_PER_PART)
        row_bytes[folder] = len(ledger.to_parquet(sample)) / max(len(sample), 1)
    faces = images * rows["faces"] / rows["images"]
    per_s = run["throughput"]["images_per_s_after_start"] or run["throughput"]["images_per_s"]
    parts = math.ceil(images / ROWS_PER_PART)
    print(f"{images:,} images and {faces:,.0f} faces, as {rows['images']:,} images with {rows['faces']:,} faces were:")
    for what, amount in (
        ("requests to list them", f"{math.ceil(images / LIST_KEYS):,}"),
        ("parts of 2,000 images, each two files", f"{parts:,}"),
        ("requests to write them", f"{2 * parts:,}"),
        ("images/ (the ledger)", f"{images * row_bytes['images'] / 1e9:,.0f} GB"),
        ("faces/", f"{faces * row_bytes['faces'] / 1e12:,.2f} TB"),
        ("images that one block of the to-do has", f"{max(256, math.ceil(images / MAX_BLOCKS)):,}"),
        (f"machine hours at {per_s:,.1f} images/s", f"{images / per_s / 3600:,.0f}"),
    ):
        print(f"| {what} | {amount} |")


def bench_plan(listed: int, done: int) -> None:
    """jobs.extract on a manifest of files that do not exist, most of them in the ledger: until its first new part."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "photos").mkdir()
        (top / "photos" / "grey.png").write_bytes(GREY_PNG)
        command = [sys.executable, "-m", "jobs.extract", str(top / "manifest.parquet"), str(top / "out")]
        subprocess.run([*command[:3], str(top / "photos"), str(top / "out")], stderr=subprocess.DEVNULL, check=True)
        storage = open_storage(str(top / "out"))
        known = ledger.committed_parts(storage)
        no_faces = pq.read_table(top / "out" / "faces").slice(0, 0)
        [done_image] = pq.read_table(top / "out" / "images").to_pylist()
        with pq.ParquetWriter(top / "manifest.parquet", schemas.LISTING) as manifest:
            for start in range(0, listed, PART_ROWS):
                uris = [f"/photos/{i // 1000:06}/{i:012}.jpg" for i in range(start, min(start + PART_ROWS, listed))]
                manifest.write_table(listing_table({"uri": uris}))
                known_uris = uris[: max(done - start, 0)]
                for first in range(0, len(known_uris), ROWS_PER_PART):
                    names = known_uris[first : first + ROWS_PER_PART]
                    images = pa.Table.from_pylist([done_image], schema=schemas.IMAGES).take([0] * len(names))
                    images = images.set_column(0, schemas.IMAGES.field("uri"), pa.array(names))
                    known.append(f"part-made-{start + first:012}")
                    ledger.write_pair(storage, known[-1], no_faces, images, check=lambda: None)
        started = time.monotonic()
        job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        driver, images_folder = psutil.Process(job.pid), top / "out" / "images"
        memory = spilled = 0
        while len(os.listdir(images_folder)) <= len(known) and job.poll() is None:   # noqa: PTH208  (names alone)
            memory = max(memory, driver.memory_info().rss)
            spilled = max(spilled, _bytes_of(top.parent.glob("facelake-scratch-*/*")))
            time.sleep(0.1)
        seconds = time.monotonic() - started
        job.terminate()
        print(job.communicate()[1])
    print(f"{listed:,} listed, {done:,} done before: first new part after {seconds:.1f} s, "
          f"the driver holds up to {memory / 2**30:.2f} GiB, and {spilled / 2**30:.2f} GiB on disk")


def _bytes_of(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):      # gone meanwhile
            total += path.stat().st_size
    return total


def bench_manifest(keys: int, threads: int, latency_s: float) -> None:
    """jobs.manifest as it is, boto3 too, but for the network: answers are made here, each after the latency."""
    from jobs import manifest

    asked: list[int] = []                 # keys of each answer

    def answer(request: Any, **_: Any) -> Any:
        time.sleep(latency_s)
        found = _simulated_keys(request.url, keys)
        asked.append(len(found))
        return _s3_answer(request.url, [_simulated_key(i) for i in found], more=bool(found) and found[-1] + 1 < keys)

    client = s3_client(StoreOptions(region="simulated", anonymous=True))   # of our own: it never reaches the network
    client.meta.events.register("before-send.s3.ListObjectsV2", answer)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.parquet"
        code = manifest.main(["s3://b/?region=simulated&anonymous=true", str(out), "--threads", str(threads)])
        seconds = time.perf_counter() - started
        parts = [path.stat().st_size for path in out.glob("*.parquet")]
        state = json.loads((out / "_manifest.json").read_text())
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"exit code {code}, {state['rows']:,} rows of {keys:,} keys in {len(parts)} parts of "
          f"{sum(parts) / 1e6:,.0f} MB together")
    print(f"{seconds:.1f} s, {keys / seconds:,.0f} keys/s, {cpu_s:.1f} s of CPU with the making of the answers; "
          f"{threads} threads, {sum(n > 1 for n in asked):,} pages and {sum(n <= 1 for n in asked):,} probes, "
          f"each {1000 * latency_s:g} ms")
    print(f"peak memory {after.ru_maxrss / 2**10:,.0f} MiB, {before.ru_maxrss / 2**10:,.0f} MiB before it began")


def _simulated_key(i: int) -> str:
    """Keys as cameras and dates make them: folders of very different sizes, names that begin alike."""
    return f"photos/{2000 + math.isqrt(i) // 150:04}/{i // 1000:07}/IMG_{i:010}.jpg"


def _simulated_keys(url: str, count: int) -> range:
    """The numbers of the keys that a request asks for."""
    query = parse_qs(urlsplit(url).query)
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    start = bisect.bisect_right(range(count), after, key=_simulated_key)
    return range(start, min(count, start + int(query["max-keys"][0])))


def _s3_answer(url: str, keys: list[str], more: bool) -> Any:
    """S3's answer to ListObjectsV2, as boto3 gets it from the network."""
    from botocore.awsrequest import AWSResponse

    class Body(io.BytesIO):
        def stream(self) -> Iterator[bytes]:
            yield self.read()

    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;"
        f"{hashlib.md5(key.encode()).hexdigest()}&quot;</ETag><Size>{hash(key) % 10_000_000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    token = f"<NextContinuationToken>{keys[-1]}</NextContinuationToken>" if more else ""
    body = (
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
        "</ListBucketResult>"
    )
    return AWSResponse(url, 200, {"Content-Type": "application/xml"}, Body(body.encode()))
