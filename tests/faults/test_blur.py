"""kill -9 of jobs.blur at several moments. The same command goes on; no copy is ever half-written or shows a face."""

from __future__ import annotations

import contextlib
import re

import cv2
import numpy as np
import pyarrow.parquet as pq

from jobs.blur.__main__ import NOTED_ROWS
from tests.faults.harness import JobRunner, Place, wait_until
from tests.jobs.blur.outputs import write_output

PHOTOS, KINDS = 300, 20
FACE = (100.0, 100.0, 200.0, 200.0)
IN_HAND = 20      # images that its threads have begun, and those that wait for them


def photo(seed):
    """A JPEG of 400 × 300 px, lively everywhere."""
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (400, 300), interpolation=cv2.INTER_NEAREST))[1])


def copies_in(dest):
    return {path.name: path.read_bytes() for path in dest.glob("*.jpg")}


def unfinished_in(dest):
    return list(dest.rglob("*.facelake-tmp"))


def rows_in(dest):
    return pq.read_table(dest / "_blur" / "copies.parquet")


def test_copies_after_kills_are_those_of_an_undisturbed_run(tmp_path, figures):
    photos = tmp_path / "photos"
    photos.mkdir()
    contents = [photo(seed) for seed in range(KINDS)]
    files = {photos / f"{number:03}.jpg": contents[number % KINDS] for number in range(PHOTOS)}
    for path, content in files.items():
        path.write_bytes(content)
    out = write_output(tmp_path / "out", {str(path): (content, [FACE]) for path, content in files.items()})
    place, dest = Place(str(photos), out.root, PHOTOS), tmp_path / "killed"
    with contextlib.closing(JobRunner(tmp_path, "jobs.blur")) as runner:
        runner.run(place, tmp_path / "undisturbed", "--no-second-look")
        expected = copies_in(tmp_path / "undisturbed")
        assert len(expected) == PHOTOS
        assert all(cv2.imdecode(np.frombuffer(copy, np.uint8), 1)[110:190, 110:190].std() < 40 < cv2.imdecode(
            np.frombuffer(contents[0], np.uint8), 1)[110:190, 110:190].std() for copy in expected.values())
        seen, half_written = 0, 0
        for moment in (
            lambda: (dest / "_blur" / "_lease.json").exists(),
            lambda: unfinished_in(dest),
            lambda: len(copies_in(dest)) > PHOTOS // 2,
            lambda: len(copies_in(dest)) == PHOTOS,
        ):
            job = runner.start(place, dest, "--no-second-look")
            assert wait_until(moment, job), job.printed()
            job.kill_all()
            done_before = int((re.findall(r"([\d,]+) done before", job.printed()) or ["0"])[0])
            assert done_before >= seen - NOTED_ROWS - IN_HAND, job.printed()
            found = copies_in(dest)
            assert found.items() <= expected.items() and len(found) >= seen
            seen, half_written = len(found), half_written + len(unfinished_in(dest))
        runner.run(place, dest, "--no-second-look")
    assert copies_in(dest) == expected and unfinished_in(dest) == []
    assert rows_in(dest).equals(rows_in(tmp_path / "undisturbed"))
    assert not (dest / "_blur" / "parts").exists()
    figures("blur killed", kills=4, files_half_written=half_written, copies_lost=0)
