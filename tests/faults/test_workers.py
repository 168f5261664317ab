"""Processes and nodes that die under a run: it goes on by itself, or ends and the same command goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import ledger
from tests.faults.harness import ROOT, Place, assert_exact, read_tables, wait_until
from tests.faults.stub_job import Faults


def marked_pids(marks: Path, name: str) -> list[int]:
    """The processes that left marks of that name, the latest last."""
    marked = sorted(marks.glob(f"{name}-*"), key=lambda path: int(path.name.split("-")[2]))
    return [int(path.name.split("-")[1]) for path in marked]


def test_workers_are_killed_and_the_run_goes_on(tried, new_output, starter, tmp_path, figures):
    """An actor of the pool, and a writer between the two halves of a pair, twice each."""
    place = new_output(tried)
    faults = Faults(image_s=0.05, between_s=0.3, marks=str(tmp_path))
    job, killed = starter.start(place, faults=faults), 0
    for name in ("detect", "between", "detect", "between"):
        parts, seen = len(ledger.committed_parts(place.storage)), len(marked_pids(tmp_path, "between"))
        assert wait_until(lambda parts=parts: len(ledger.committed_parts(place.storage)) > parts, job)
        if name == "between":
            assert wait_until(lambda seen=seen: len(marked_pids(tmp_path, "between")) > seen, job)
        os.kill(marked_pids(tmp_path, name)[-1], signal.SIGKILL)
        killed += 1
    assert job.wait() == 0, job.said()
    assert_exact(place, tried.expected)
    figures(f"workers killed ({tried.name})", kills=killed, survived=killed, rows_lost=0)


def test_an_image_that_kills_its_process_is_left_out(on_disk, new_output, starter, tmp_path, figures):
    """All others are done; the next run tries it again, and then it is as in a run that nothing disturbed."""
    place = new_output(on_disk)
    faults = Faults(kill="13.png", kill_times=100, marks=str(tmp_path))
    starter.run(place, faults=faults)
    rows = {row["uri"]: row for row in ledger.read_ledger(place.storage, ("uri", "status", "error")).to_pylist()}
    assert len(rows) == place.images
    assert [Path(uri).name for uri, row in rows.items() if row["status"] == "failed"] == ["13.png"]
    assert "died 2 times at this image" in rows[f"{place.input}/13.png"]["error"]
    deaths = faults.count("killed")
    starter.run(place)
    assert_exact(place, on_disk.expected)
    figures("an image that kills its process", deaths=deaths, images_left_out=1, rows_lost=0)


@pytest.fixture
def two_nodes(monkeypatch) -> Iterator[object]:
    """A cluster of a head with one CPU and a node with two, whose processes find the tests."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


def test_a_node_is_lost_and_another_one_comes(two_nodes, on_disk, new_output, starter, tmp_path, figures):
    place = new_output(on_disk)
    faults = Faults(image_s=0.15, marks=str(tmp_path))
    job = starter.start(
        place, "--shared-filesystem", "--pools", "decode+detect:2/keypoint+align+embed", faults=faults,
        RAY_ADDRESS=two_nodes.address,
    )
    assert wait_until(lambda: len(ledger.committed_parts(place.storage)) >= 2, job)
    before = len(marked_pids(tmp_path, "detect"))
    two_nodes.remove_node(two_nodes.list_all_nodes()[-1], allow_graceful=False)
    two_nodes.add_node(num_cpus=2)
    code = job.wait()
    started_anew = len(marked_pids(tmp_path, "detect")) - before
    if code == 1:
        assert "the same command goes on from there" in job.said() and "Traceback" not in job.said()
        starter.run(place, "--shared-filesystem", RAY_ADDRESS=two_nodes.address)
    else:
        assert code == 0, job.said()
    assert_exact(place, on_disk.expected)
    assert started_anew
    figures("a node of two killed, another added", exit_code=code, processes_started_anew=started_anew, rows_lost=0)


def test_an_object_store_that_is_full(starter, tmp_path, monkeypatch, figures):
    """Photos of 270 MB decoded pass through an object store of 80 MB from pool to pool."""
    from ray.cluster_utils import Cluster

    (tmp_path / "in").mkdir()
    import cv2
    import numpy as np

    for number in range(30):
        pixels = np.full((1500, 2000, 3), number * 8, np.uint8)
        pixels[::7, ::5] = np.random.default_rng(number).integers(0, 256, 3)
        cv2.imwrite(str(tmp_path / "in" / f"{number:02}.jpg"), pixels)
    place = Place(str(tmp_path / "in"), str(tmp_path / "undisturbed"), 30, (
        "--detect-px", 160, "--second-pass-px", 0, "--decode-scale", "full", "--rows-per-file", 5))
    starter.run(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 << 20})
    try:
        full = place.at(str(tmp_path / "out"))
        starter.run(full, "--pools", "decode/detect/keypoint+align+embed", RAY_ADDRESS=cluster.address,
                    faults=Faults(image_s=0.05))
    finally:
        cluster.shutdown()
    assert_exact(full, read_tables(place.storage))
    figures("object store full", decoded_mb=270, object_store_mb=80, rows_lost=0)
