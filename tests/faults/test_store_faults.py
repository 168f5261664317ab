"""A store that throttles, resets, trickles and refuses; disks and object stores that are full; broken models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.store import DEFAULT_WEIGHTS_DIR
from tests.faults.harness import Place, assert_exact, committed
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
def test_a_store_that_fails_now_and_then_costs_nothing_but_time(
    on_s3, new_output, s3_endpoint, starter, figures, rules
):
    place = new_output(on_s3)
    with failing(s3_endpoint, *rules) as (endpoint, proxy):
        starter.run(place, AWS_ENDPOINT_URL=endpoint)
    assert_exact(place, on_s3.expected)
    assert set(proxy.injected) == {rule.then for rule in rules}
    figures("S3 fails now and then", **{then.replace(" ", "_"): n for then, n in proxy.injected.items()}, rows_lost=0)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Rule("AccessDenied", "PUT", "/images/", after=3), r"access denied.*/images/part-"),
        (Rule("AccessDenied", "PUT", "/faces/", after=2), r"access denied.*/faces/part-"),
        (Rule("AccessDenied", "PUT", "/run.json"), r"access denied.*/run\.json"),
    ],
    ids=["second half", "first half", "the end"],
)
def test_a_store_that_takes_no_more_breaks_the_run_and_the_same_command_goes_on(
    on_s3, new_output, s3_endpoint, starter, figures, rule, told
):
    place = new_output(on_s3)
    with failing(s3_endpoint, rule) as (endpoint, _):
        said = starter.run(place, expect=1, AWS_ENDPOINT_URL=endpoint)
    assert re.search(f"the run broke.*{told}", said) and "the same command goes on from there" in said
    kept = committed(place.storage)
    starter.run(place)
    assert kept <= committed(place.storage)
    assert_exact(place, on_s3.expected)
    figures(f"S3 refuses PUTs ({rule.path})", runs_broken=1, done_before=len(kept), rows_lost=0)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 220 kB, where the machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (that takes root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_breaks_the_run_and_the_same_command_goes_on(on_disk, small_disk, joining, figures):
    place = on_disk.place.at(str(small_disk / "out"))
    said = joining.run(place, expect=1)
    assert re.search(r"the run broke.*No space left on device.*/out/", said)
    assert "the same command goes on from there" in said
    kept = committed(place.storage)
    assert 0 < len(kept) < place.images - 2
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    joining.run(place)
    assert_exact(place, on_disk.expected)
    figures("disk full", runs_broken=1, done_before=len(kept), rows_lost=0)


def test_an_output_that_cannot_hold_a_part_breaks_the_run_in_a_line(on_disk, new_output, joining, tmp_path):
    """A faces/ that is a file."""
    place = new_output(on_disk)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "faces").write_text("")
    said = joining.run(place, expect=1)
    broke = next(line for line in said.splitlines() if line.startswith("facelake: the run broke."))
    assert str(tmp_path / "out" / "faces") in broke and "UDF" not in said


def test_memory_that_is_short_costs_nothing_but_time(on_disk, new_output, joining, figures):
    """The detector's GPU has room for three images where batches are of eight, and one of its calls has no memory."""
    place = new_output(on_disk)
    joining.run(place, "--detect-batch", 8, "--batch-images", 8, faults=Faults(cuda_memory=3, memory=2))
    assert_exact(place, on_disk.expected)
    figures("CUDA out of memory (simulated), and no memory in one call", batch="8 halved to 2", rows_lost=0)


@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("detector-yolov8n.safetensors", lambda content: content[:-1], "damaged or not its card's"),
        ("keypointer-resnet18.safetensors", lambda content: content[:9000] + b"\0\1\2\3" + content[9004:], "damaged"),
        ("embedder-edgenext.safetensors", lambda content: b"", "damaged"),
        ("embedder-edgenext.json", lambda content: content[:500], "is not JSON"),
        ("detector-yolov8n.json", lambda content: json.dumps(json.loads(content) | {"sha256": "0" * 64}).encode(),
         "damaged or not its card's"),
    ],
)
def test_a_broken_model_is_refused_before_anything_is_written(starter, tmp_path, figures, file, damage, told):
    shutil.copytree(DEFAULT_WEIGHTS_DIR, tmp_path / "weights")
    path = tmp_path / "weights" / file
    path.write_bytes(damage(path.read_bytes()))
    (tmp_path / "in").mkdir()
    place = Place(str(tmp_path / "in"), str(tmp_path / "out"), 0)
    said = starter.run(place, "--weights", tmp_path / "weights", expect=2)
    assert told in said and str(path.with_suffix("")) in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    figures(f"broken model ({file})", refused=1)
