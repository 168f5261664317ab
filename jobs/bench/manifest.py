"""`jobs.bench manifest`: jobs.manifest on a bucket of millions of keys, whose answers are made here."""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jobs import manifest
from pipeline.storage.aws import s3_client
from pipeline.storage.uris import StoreOptions


def bench_manifest(keys: int, threads: int, latency_s: float) -> None:
    """Run jobs.manifest with boto3 but without a network, and print time and memory. Each answer takes the latency."""
    asked = simulate_s3(keys, latency_s)
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
    print(f"{seconds:.1f} s, {keys / seconds:,.0f} keys/s, {cpu_s:.1f} s of CPU including the making of the answers; "
          f"{threads} threads, {sum(n > 1 for n in asked):,} pages and {sum(n <= 1 for n in asked):,} probes, "
          f"each {1000 * latency_s:g} ms")
    print(f"peak memory {after.ru_maxrss / 2**10:,.0f} MiB, {before.ru_maxrss / 2**10:,.0f} MiB before the start")


def simulate_s3(keys: int, latency_s: float) -> list[int]:
    """Answer every listing request of this process here. Returns a list that gets the number of keys of each answer."""
    asked: list[int] = []

    def answer(request: Any, **_: Any) -> Any:
        time.sleep(latency_s)
        found = simulated_keys(request.url, keys)
        asked.append(len(found))
        return s3_answer(request.url, [simulated_key(i) for i in found], more=bool(found) and found[-1] + 1 < keys)

    client = s3_client(StoreOptions(region="simulated", anonymous=True))
    client.meta.events.register("before-send.s3.ListObjectsV2", answer)
    return asked


def simulated_key(i: int) -> str:
    """Keys like those of cameras: folders of very different sizes, names with the same beginnings."""
    return f"photos/{2000 + math.isqrt(i) // 150:04}/{i // 1000:07}/IMG_{i:010}.jpg"


def simulated_keys(url: str, count: int) -> range:
    """The numbers of the keys that answer a request."""
    query = parse_qs(urlsplit(url).query)
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    start = bisect.bisect_right(range(count), after, key=simulated_key)
    return range(start, min(count, start + int(query["max-keys"][0])))


def s3_answer(url: str, keys: list[str], more: bool) -> Any:
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
