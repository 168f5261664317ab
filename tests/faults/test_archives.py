"""kill -9 of the driver while it reads archives in a bucket: nothing is lost or doubled, and none is listed again."""

from __future__ import annotations

import gzip
import random
import uuid

import boto3
import pyarrow as pa

from tests.faults.conftest import output_of, run_undisturbed
from tests.faults.harness import IMAGES, STUB_ARGUMENTS, Place, assert_exact, committed, photos
from tests.faults.stub_job import Faults
from tests.faults.test_kills import SLOW, Moments
from tests.support.archives import tar, zipped

PHASES = ("Ray", "parts", "halves", "last part")


def archives_place(s3_endpoint: str) -> Place:
    """The images of the other tests in archives of several kinds, and two archives that are cut off."""
    members = list(photos())
    quarter = IMAGES // 4
    archives = {
        "a.tar": tar(*members[:quarter]),
        "b.tgz": gzip.compress(tar(*members[quarter : 2 * quarter])),
        "c.zip": zipped(*members[2 * quarter : 3 * quarter]),
        "d.tar.zst": pa.compress(tar(*members[3 * quarter :]), codec="zstd", asbytes=True),
        "cut.tar": tar(*members[:1])[:700],
        "cut.zip": zipped(*members[:1])[:-30],
    }
    client, bucket = boto3.client("s3", endpoint_url=s3_endpoint), f"test{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for name, content in archives.items():
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
    return Place(f"s3://{bucket}/in/", "", IMAGES + 2, STUB_ARGUMENTS)


def test_the_driver_is_killed_while_it_reads_archives(s3_endpoint, ray_address, shared_ray, tmp_path, figures):
    baseline = run_undisturbed("archives", archives_place(s3_endpoint), ray_address, tmp_path)
    place, seed = baseline.place.with_output(output_of(baseline.place, tmp_path, "out")), random.randrange(10**6)
    moments, faults, kept = Moments(seed, 0), Faults(**SLOW, marks=str(tmp_path)), set()
    for phase in PHASES:
        job = shared_ray.start(place, faults=faults)
        if not moments.wait(phase, job, place.storage, faults, place.images):
            break                                       # the run ended before the kill
        job.kill_driver()
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}, {phase}: {kept - now} were committed and are gone"
        kept = now
        assert len(place.storage.list("_index")) == 4   # of the sound archives, from the first listing on
    shared_ray.run(place)
    assert_exact(place, baseline.expected)
    figures("driver killed, archives in a bucket", kills=len(PHASES), rows_lost=0, seed=seed)
