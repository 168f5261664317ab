"""Runs with the shipped models on real photos, killed on disk and on S3; and a person erased by a photo."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from jobs.erase.__main__ import main as erase
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from jobs.people.photos import PhotoReader, read_photo
from models.store import DEFAULT_WEIGHTS_DIR
from pipeline.output import ledger
from pipeline.settings import RowSettings
from tests.faults.conftest import output_of
from tests.faults.harness import JobRunner, Place, assert_exact, committed, read_tables, wait_until
from tests.jobs.erase.test_main import ZIDANE, uris, write_output
from tests.support.photos import photos_in_sizes

pytestmark = pytest.mark.timeout(600)      # five runs that load torch

SIZES_PX = (1280, 1024, 768, 640, 576, 512, 448, 384, 320)


@pytest.fixture(params=["disk", "S3"])
def place(request, tmp_path) -> Place:
    """The photos, on disk or in a bucket."""
    contents = photos_in_sizes(SIZES_PX)
    if request.param == "disk":
        (tmp_path / "in").mkdir()
        for name, content in contents.items():
            (tmp_path / "in" / name).write_bytes(content)
        return Place(str(tmp_path / "in"), "", len(contents), ("--rows-per-file", 4))
    bucket = request.getfixturevalue("bucket")
    for name, content in contents.items():
        bucket.put(f"in/{name}", content)
    return Place(f"{bucket.uri}/in/", "", len(contents), ("--rows-per-file", 4))


def test_runs_killed_at_random_moments_end_with_the_same_tables(place, ray_address, tmp_path, figures):
    runner = JobRunner(tmp_path, "jobs.extract", {"RAY_ADDRESS": ray_address})
    undisturbed = place.with_output(output_of(place, tmp_path, "undisturbed"))
    runner.run(undisturbed)
    expected = read_tables(undisturbed.storage)
    assert len(expected.faces) > len(SIZES_PX)
    disturbed = place.with_output(output_of(place, tmp_path, "out"))
    seed = random.randrange(10**6)
    moments, kept = random.Random(seed), set()
    for survived in (1, 2, 3):                     # kill it shortly after its first, second, third part
        job = runner.start(disturbed)
        wait_until(lambda survived=survived: len(ledger.committed_parts(disturbed.storage)) >= survived, job)
        time.sleep(moments.uniform(0, 0.4))
        job.kill_driver()
        now = committed(disturbed.storage)
        assert kept <= now, f"seed {seed}"
        kept = now
    runner.run(disturbed)
    runner.close()
    assert_exact(disturbed, expected, tolerance=1e-4)
    figures(f"driver killed under the shipped models ({'S3' if '://' in place.input else 'disk'})", kills=3,
            survived=3, faces=len(expected.faces), rows_lost=0, seed=seed)


def test_a_photo_finds_the_person_and_not_the_other_one(tmp_path, capsys):
    """The shipped models tell Zidane from the man beside him."""
    models = read_models(None, DEFAULT_MODELS)
    threshold = models.embedder.thresholds["0.001"]
    first, second = read_photo(str(ZIDANE), PhotoReader(RowSettings(), models, DEFAULT_WEIGHTS_DIR)).vectors
    assert abs(np.linalg.norm(first) - 1) < 1e-5 and first @ second < threshold
    storage = write_output(
        tmp_path / "out", [{"/p/1.jpg": [first], "/p/2.jpg": [second]}, {"/p/12.jpg": [second, first]}]
    )
    assert erase([storage.root, "--like", str(ZIDANE), "--face", "0"]) == 0
    assert uris(storage, "images") == uris(storage, "faces") == ["/p/2.jpg"]
    assert f"cosine {threshold:.3f} or more" in capsys.readouterr().err
