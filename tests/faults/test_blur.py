"""kill -9 of jobs.blur at several moments. The same command goes on; no copy is ever half-written or shows a face."""

from __future__ import annotations

import contextlib
import io
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import boto3
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.blur.__main__ import NOTED_ROWS
from pipeline.storage import open_storage
from pipeline.storage.uris import parse_input_uri
from tests.faults.harness import JobRunner, Place, wait_until
from tests.jobs.blur.outputs import write_output

PHOTOS, KINDS = 300, 20
FACE = (100.0, 100.0, 200.0, 200.0)
IN_HAND = 20      # images that its threads have begun, and those that wait for them


def photo(seed):
    """A JPEG of 400 × 300 px, lively everywhere."""
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (400, 300), interpolation=cv2.INTER_NEAREST))[1])


@dataclass(frozen=True)
class Dest:
    """Where copies go: a folder or a prefix of a bucket."""

    uri: str

    @property
    def storage(self):
        return open_storage(*parse_input_uri(self.uri))

    def names(self):
        return [entry.path for entry in self.storage.list("") if entry.path.endswith(".jpg")]

    def copies(self):
        return {name: self.storage.read(name) for name in self.names()}

    def has_lease(self):
        return any(entry.path.endswith("_lease.json") for entry in self.storage.list("_blur"))

    def unfinished(self):
        """Half-written files; a bucket has none."""
        return [] if "://" in self.uri else list(Path(self.uri).rglob("*.facelake-tmp"))

    def rows(self):
        return pq.read_table(io.BytesIO(self.storage.read("_blur/copies.parquet")))


@pytest.fixture(params=["disk", "S3"])
def dest(request, tmp_path):
    """An empty place."""
    if request.param == "disk":
        return Dest(str(tmp_path / "killed"))
    request.getfixturevalue("s3_endpoint")
    bucket = f"test{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return Dest(f"s3://{bucket}/killed")


def test_copies_after_kills_are_those_of_an_undisturbed_run(tmp_path, dest, figures):
    photos = tmp_path / "photos"
    photos.mkdir()
    contents = [photo(seed) for seed in range(KINDS)]
    files = {photos / f"{number:03}.jpg": contents[number % KINDS] for number in range(PHOTOS)}
    for path, content in files.items():
        path.write_bytes(content)
    out = write_output(tmp_path / "out", {str(path): (content, [FACE]) for path, content in files.items()})
    place, undisturbed = Place(str(photos), out.root, PHOTOS), Dest(str(tmp_path / "undisturbed"))
    with contextlib.closing(JobRunner(tmp_path, "jobs.blur")) as runner:
        runner.run(place, undisturbed.uri, "--no-second-look")
        expected = undisturbed.copies()
        assert len(expected) == PHOTOS
        assert all(cv2.imdecode(np.frombuffer(copy, np.uint8), 1)[110:190, 110:190].std() < 40 < cv2.imdecode(
            np.frombuffer(contents[0], np.uint8), 1)[110:190, 110:190].std() for copy in expected.values())
        moments = [
            dest.has_lease, dest.unfinished, lambda: len(dest.names()) > PHOTOS // 2,
            lambda: len(dest.names()) == PHOTOS,
        ]
        if "://" in dest.uri:
            moments.remove(dest.unfinished)
        seen, half_written = 0, 0
        for moment in moments:
            job = runner.start(place, dest.uri, "--no-second-look")
            assert wait_until(moment, job), job.printed()
            job.kill_all()
            done_before = int((re.findall(r"([\d,]+) done before", job.printed()) or ["0"])[0])
            assert done_before >= seen - NOTED_ROWS - IN_HAND, job.printed()
            found = dest.copies()
            assert found.items() <= expected.items() and len(found) >= seen
            seen, half_written = len(found), half_written + len(dest.unfinished())
        runner.run(place, dest.uri, "--no-second-look")
    assert dest.copies() == expected and dest.unfinished() == []
    assert dest.rows().equals(undisturbed.rows())
    assert list(dest.storage.list("_blur/parts")) == []
    figures(f"blur killed ({'S3' if '://' in dest.uri else 'disk'})", kills=len(moments),
            files_half_written=half_written, copies_lost=0)
