"""Runs of the main job with the shipped weights, and what they wrote."""

import importlib.util
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs.extract.job
from pipeline.run import cluster
from pipeline.storage.local import LocalStorage

ROOT = Path(__file__).parents[3]
ASSETS = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0]) / "assets"
LAYOUTS = ("decode+detect+keypoint+align+embed", "decode/detect+keypoint+align+embed",
           "decode/detect/keypoint/align/embed")


def command(*arguments):
    return [sys.executable, "-m", "jobs.extract", *map(str, arguments)]


def extract(*arguments, expect=0):
    """Run the job in its own process, on a Ray of its own. Returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == expect, result.stderr
    assert result.stdout == ""
    return result.stderr


def extract_here(capfd, *arguments, expect=0):
    """Run the job in this process, on the Ray that it is connected to: its own would take 13 s of a CPU.

    Returns what was printed.
    """
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", connected)
        code = jobs.extract.job.main([*map(str, arguments)])
    printed = capfd.readouterr()
    assert code == expect, printed.err
    # Where a run ends early, Ray may say of an actor that it was asked where it is when it was killed.
    asked_in_vain = expect == 1 and ".get_location failed. There are infinite retries" in printed.out
    assert not printed.out or asked_in_vain, printed.out
    return printed.err


@contextmanager
def connected(*_, **__):
    """In the place of `cluster.connect`: the Ray that this process is connected to, which stays up."""
    wait_until_free()
    _, free = cluster.all_and_free_resources()
    yield cluster.Connection(free["CPU"], free.get("GPU", 0.0), cluster.alive_nodes(), cluster.cpus_beside_gpus())


@contextmanager
def counted_listings():
    """How often this process lists each folder of a local output."""
    counts, listed = Counter(), LocalStorage.list

    def counting(storage, folder):
        counts[folder] += 1
        return listed(storage, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "list", counting)
        yield counts


def wait_until_free(seconds=60):
    """Wait until the Ray that this process is connected to has released what the last job held."""
    import ray

    end = time.monotonic() + seconds
    while any(ray.available_resources().get(name, 0) < ray.cluster_resources()[name] for name in ("CPU", "memory")):
        assert time.monotonic() < end, f"only {ray.available_resources()} of {ray.cluster_resources()} are free"
        time.sleep(0.05)


def refused(capsys, *arguments):
    """Run the job in this process, which must refuse to begin. Returns what it printed."""
    assert jobs.extract.job.main([*map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "", printed.out
    return printed.err


def table(output, name):
    keys = [("uri", "ascending")] + ([("face_index", "ascending")] if name == "faces" else [])
    return pq.read_table(Path(output) / name).sort_by(keys)


def parts(output):
    """Every file of the tables, with what changes when it is written again."""
    files = sorted(path for name in ("faces", "images") for path in (Path(output) / name).iterdir())
    return {path.relative_to(output): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def box_iou(a, b):
    inter = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(axis=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return inter / (sum(areas) - inter)


def assert_same_rows(output, expected):
    """The rows are equal, boxes to an IoU of 0.99 and vectors to 1e-4."""
    images, images_expected = (table(o, "images").drop_columns(["run_id"]) for o in (output, expected))
    assert images.equals(images_expected)
    faces, faces_expected = table(output, "faces"), table(expected, "faces")
    for column in ("uri", "face_index", "align_ok", "detector", "keypointer", "embedder"):
        assert faces[column].equals(faces_expected[column]), column
    boxes = [np.stack([f[c].to_numpy() for c in ("x1", "y1", "x2", "y2")], axis=1) for f in (faces, faces_expected)]
    assert (box_iou(*boxes) >= 0.99).all()
    vectors = [np.stack(f["embedding"].to_numpy()) for f in (faces, faces_expected)]
    assert np.abs(vectors[0] - vectors[1]).max() <= 1e-4
    points = [np.stack(f["eye_points"].to_numpy()) for f in (faces, faces_expected)]
    assert np.abs(points[0] - points[1]).max() <= 0.05
