"""--dedupe: the tables are those of a run without it, also after kill -9 while rows are copied."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import boto3
import pytest

from tests.faults.conftest import Baseline, disk_place, s3_place
from tests.faults.harness import (
    IMAGES,
    ROOT,
    JobRunner,
    Place,
    assert_exact,
    committed,
    photo,
    read_tables,
    wait_until,
)
from tests.faults.stub_job import Faults
from tests.support.archives import tar, zipped

COPIES = {      # sorted before and after the photo
    name: number for number in (7, *range(0, 40, 2)) for name in (f"00 copy {number}.png", f"copy {number}.png")
}
ARCHIVES = {        # each holds a copy
    "t.tar": tar(("a.png", photo(1))), "t.tgz": gzip.compress(tar(("a.png", photo(3)))),
    "t.zip": zipped(("a.png", photo(5))),
}
COPIED = len(COPIES) + len(ARCHIVES)
KILLS = 4


@pytest.fixture(scope="module", params=["disk", "S3"])
def with_copies(request, shared_place) -> Baseline:
    """Images of which many are copies of others, and the tables of a run without --dedupe."""
    return shared_place(request.param)


@pytest.fixture(scope="module")
def shared_place(s3_endpoint, ray_address, tmp_path_factory) -> Callable[[str], Baseline]:
    @cache
    def make(kind: str) -> Baseline:
        folder = tmp_path_factory.mktemp(kind)
        files = [*((name, photo(number)) for name, number in COPIES.items()), *ARCHIVES.items()]
        if kind == "disk":
            place = disk_place(folder)
            for name, content in files:
                Path(place.input, name).write_bytes(content)
        else:
            place = s3_place(s3_endpoint)
            client, bucket = boto3.client("s3", endpoint_url=s3_endpoint), place.input.split("/")[2]
            for name, content in files:
                client.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
        output = place.input.replace("/in/", "/undisturbed") if kind == "S3" else str(folder / "undisturbed")
        place = Place(place.input, output, IMAGES + 2 + COPIED, place.arguments)
        runner = JobRunner(folder, environment={"RAY_ADDRESS": ray_address})
        runner.run(place)
        runner.close()
        return Baseline(kind, place, read_tables(place.storage))

    return make


def this_run(place: Place) -> dict[str, int]:
    counts: dict[str, int] = json.loads(place.storage.read("run.json"))["this_run"]
    return counts


def test_equal_images_are_computed_once(with_copies, new_output, shared_ray):
    place = new_output(with_copies)
    said = shared_ray.run(place, "--dedupe")
    assert_exact(place, with_copies.expected)
    assert f"and {COPIED} are: their rows are copied" in said
    assert f"{COPIED} images copied from others of equal content instead of computed" in said
    assert (this_run(place)["images"], this_run(place)["copied"]) == (IMAGES + 2, COPIED)
    assert "2 to do" in shared_ray.run(place, "--dedupe")          # the two that cannot be read
    assert_exact(place, with_copies.expected)


def test_the_driver_is_killed_while_it_copies(with_copies, new_output, shared_ray, tmp_path, figures):
    """Before Ray has begun and after it has ended, between the halves of a part and elsewhere."""
    place, seed = new_output(with_copies), random.randrange(10**6)
    moment, kept = random.Random(seed), set()
    faults = Faults(copy_s=0.1, marks=str(tmp_path))
    for _ in range(KILLS):
        before = faults.count("copying")
        wanted = before + moment.randint(1, 3)
        job = shared_ray.start(place, "--dedupe", faults=faults)
        assert wait_until(lambda job=job, wanted=wanted: faults.count("copying") >= wanted, job), job.printed()
        time.sleep(moment.uniform(0, 0.15))
        job.kill_driver()
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}: {kept - now} were committed and are gone"
        kept = now
    shared_ray.run(place, "--dedupe")
    assert_exact(place, with_copies.expected)
    figures(f"driver killed while it copies ({with_copies.name})", kills=KILLS, survived=KILLS, rows_lost=0, seed=seed)


def test_copies_of_an_image_that_fails_are_computed(shared_place, new_output, own_ray, tmp_path):
    """In the same run, on a Ray that is started again; and the next run copies the rows of one of them."""
    baseline = shared_place("disk")
    place = new_output(baseline)
    faults = Faults(kill="00 copy 2.png", kill_times=99, marks=str(tmp_path))
    said = own_ray.run(place, "--dedupe", faults=faults)
    statuses = dict(zip(*(read_tables(place.storage).images[name].to_pylist() for name in ("uri", "status")),
                        strict=True))
    failed = [uri for uri, status in statuses.items() if status == "failed"]
    assert failed == [f"{place.input}/00 copy 2.png"] and len(statuses) == place.images
    assert f"{COPIED - 2} images copied" in said
    own_ray.run(place, "--dedupe")
    assert (this_run(place)["images"], this_run(place)["copied"]) == (2, 1)
    assert_exact(place, baseline.expected)


def test_moved_photos_are_copied_without_ray_and_erased_names_stay_away(shared_place, new_output, own_ray, tmp_path):
    baseline = shared_place("disk")
    place = new_output(baseline)
    own_ray.run(place)
    shutil.copytree(place.input, tmp_path / "moved", symlinks=True)
    for name in ("gone.png", "13 gone.png"):
        (tmp_path / "moved" / name).unlink()
    moved = Place(str(tmp_path / "moved"), place.output, 2 * place.images - 2, place.arguments)
    said = own_ray.run(moved, "--dedupe")
    assert "Planned for" not in said and f"{place.images - 2} images copied" in said
    assert f"{place.images - 2} of the {place.images - 2} images of this run have the content" in said
    tables = read_tables(moved.storage)
    assert tables.images["uri"].to_pylist() == sorted(
        [*baseline.expected.images["uri"].to_pylist(),
         *(f"{path}#a.png" if path.name in ARCHIVES else str(path) for path in (tmp_path / "moved").iterdir())]
    )
    assert len(tables.faces) == 2 * len(baseline.expected.faces)
    name = f"{place.input}/copy 2.png"
    erased = subprocess.run([sys.executable, "-m", "jobs.erase", place.output, "--uri", name], cwd=ROOT)
    assert erased.returncode == 0
    assert "1 left out because jobs.erase erased them" in own_ray.run(place, "--dedupe")
    uris = read_tables(place.storage).images["uri"].to_pylist()
    assert name not in uris and f"{tmp_path}/moved/copy 2.png" in uris
