"""Stores that throttle, reset, trickle and refuse; a full disk; too little memory; broken models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.extract import job as extract
from jobs.options import DEFAULT_MODELS
from models.store import DEFAULT_WEIGHTS_DIR
from tests.faults.harness import assert_exact, committed
from tests.faults.proxy import Rule, failing
from tests.faults.stub_job import Faults

THROTTLED = (Rule("SlowDown", every=3),)
UNRELIABLE = (
    Rule("InternalError", "PUT", "/images/", times=3),
    Rule("reset when done", "PUT", every=4),       # parts, the lease, output.json
    Rule("reset in body", "GET", "/in/.*png", every=4),
    Rule("trickle", "GET", "/in/.*png", every=6),
    Rule("reset", "GET|HEAD", every=7),
)


@pytest.mark.parametrize("rules", [THROTTLED, UNRELIABLE], ids=["throttled", "unreliable"])
def test_requests_that_fail_are_retried(on_s3, new_output, s3_endpoint, shared_ray, figures, rules):
    place = new_output(on_s3)
    with failing(s3_endpoint, *rules) as (endpoint, proxy):
        shared_ray.run(place.through(endpoint))
    assert_exact(place, on_s3.expected)
    assert set(proxy.injected) == {rule.fault for rule in rules}
    figures("S3 fails now and then", **{fault.replace(" ", "_"): n for fault, n in proxy.injected.items()}, rows_lost=0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("AccessDenied", "PUT", "/images/", after=3), r"access denied.*/images/part-"),
        (Rule("AccessDenied", "PUT", "/faces/", after=2), r"access denied.*/faces/part-"),
        (Rule("AccessDenied", "PUT", "/run.json"), r"access denied.*/run\.json"),
    ],
    ids=["images half", "faces half", "run.json"],
)
def test_a_store_that_refuses_to_write_breaks_the_run_which_can_be_resumed(
    on_s3, new_output, s3_endpoint, shared_ray, figures, rule, message
):
    place = new_output(on_s3)
    with failing(s3_endpoint, rule) as (endpoint, _):
        printed = shared_ray.run(place.through(endpoint), expect=1)
    assert re.search(f"the run broke.*{message}", printed) and "Committed images are kept. To resume, run:" in printed
    kept = committed(place.storage)
    shared_ray.run(place)
    assert kept <= committed(place.storage)
    assert_exact(place, on_s3.expected)
    figures(f"S3 refuses PUTs ({rule.path})", runs_broken=1, done_before=len(kept), rows_lost=0)


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [("ExpiredToken", "the credentials have expired; log in again"), ("NoSuchBucket", "there is no such bucket")],
)
def test_what_every_image_meets_ends_the_run_and_marks_no_image(
    on_s3, new_output, s3_endpoint, shared_ray, figures, fault, remedy
):
    place = new_output(on_s3)
    with failing(s3_endpoint, Rule(fault, "GET", "/in/.*png", after=20)) as (endpoint, _):
        printed = shared_ray.run(place.through(endpoint), expect=1)
    assert re.search(rf"the run broke: s3://.*: {remedy}", printed) and "To resume, run:" in printed
    assert printed.count(remedy) == 1
    kept = committed(place.storage)
    shared_ray.run(place)
    assert kept <= committed(place.storage)
    assert_exact(place, on_s3.expected)
    figures(f"S3 answers {fault} during the run", runs_broken=1, done_before=len(kept), rows_lost=0)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 220 kB. To mount one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs root: it mounts a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_breaks_the_run_which_can_be_resumed(on_disk, small_disk, shared_ray, figures):
    place = on_disk.place.with_output(str(small_disk / "out"))
    printed = shared_ray.run(place, expect=1)
    assert re.search(r"the run broke.*No space left on device.*/out/", printed)
    assert "Committed images are kept. To resume, run:" in printed
    kept = committed(place.storage)
    assert 0 < len(kept) < place.images - 2
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("disk full", runs_broken=1, done_before=len(kept), rows_lost=0)


def test_an_output_that_cannot_hold_a_part_breaks_the_run_with_one_line(on_disk, new_output, own_ray, tmp_path):
    """`faces/` is a file."""
    place = new_output(on_disk)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "faces").write_text("")
    printed = own_ray.run(place, expect=1)
    broke = next(line for line in printed.splitlines() if line.startswith("facelake: the run broke."))
    assert str(tmp_path / "out" / "faces") in broke and "UDF" not in printed and "Started a local Ray" not in printed


def test_too_little_memory_changes_no_row(on_disk, new_output, shared_ray, figures):
    """The simulated GPU has room for three images of a batch of eight; one call of the detector raises MemoryError."""
    place = new_output(on_disk)
    shared_ray.run(place, "--detect-batch", 8, "--batch-images", 8, faults=Faults(cuda_memory=3, memory=2))
    assert_exact(place, on_disk.expected)
    figures("CUDA out of memory (simulated), and no memory in one call", batch="8 halved to 2", rows_lost=0)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("detector-yolov8n.safetensors", lambda content: content[:-1], "damaged or not its card's"),
        (f"keypointer-{DEFAULT_MODELS['keypointer']}.safetensors",
         lambda content: content[:9000] + b"\0\1\2\3" + content[9004:], "damaged"),
        ("embedder-edgenext.safetensors", lambda content: b"", "damaged"),
        ("embedder-edgenext.json", lambda content: content[:500], "is not JSON"),
        ("detector-yolov8n.json", lambda content: json.dumps(json.loads(content) | {"sha256": "0" * 64}).encode(),
         "damaged or not its card's"),
    ],
)
def test_a_broken_model_is_refused_before_anything_is_written(tmp_path, capsys, figures, file, damage, message):
    shutil.copytree(DEFAULT_WEIGHTS_DIR, tmp_path / "weights")
    path = tmp_path / "weights" / file
    path.write_bytes(damage(path.read_bytes()))
    (tmp_path / "in").mkdir()
    assert extract.main([str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tmp_path / "weights")]) == 2
    printed = capsys.readouterr().err
    assert message in printed and str(path.with_suffix("")) in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    figures(f"broken model ({file})", refused=1)
