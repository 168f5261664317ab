"""Workers and nodes that die during a run. It goes on by itself, or it ends and can be resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.output import ledger
from pipeline.output.lease import process_start
from tests.faults.harness import Place, assert_exact, cluster, read_tables, wait_until
from tests.faults.stub_job import Faults


def marked_pids(marks: Path, name: str) -> list[int]:
    """The processes that recorded the event, the latest last."""
    marked = sorted(marks.glob(f"{name}-*"), key=lambda path: int(path.name.split("-")[2]))
    return [int(path.name.split("-")[1]) for path in marked]


def test_workers_are_killed_and_the_run_goes_on(baseline, new_output, shared_ray, tmp_path, figures):
    """An actor of the pool, and a writer between the two halves of a part, twice each."""
    place = new_output(baseline)
    faults = Faults(image_s=0.3, between_s=0.3, marks=str(tmp_path))   # the pool works on during the first write
    job, killed = shared_ray.start_and_reach(lambda job: faults.count("between") > 0, place, faults=faults), []
    for name in ("detect", "between", "detect", "between"):
        seen = faults.count(name) if name == "between" else 0      # a writer at this moment
        assert wait_until(
            lambda name=name, seen=seen: faults.count(name) > seen and marked_pids(tmp_path, name)[-1] not in killed,
            job,
        ), job.printed()
        killed.append(marked_pids(tmp_path, name)[-1])
        os.kill(killed[-1], signal.SIGKILL)
    assert job.wait() == 0, job.printed()
    assert_exact(place, baseline.expected)
    figures(f"workers killed ({baseline.name})", kills=len(killed), survived=len(killed), rows_lost=0)


@pytest.mark.parametrize("pools", ["decode+detect+keypoint+align+embed", "decode/detect+keypoint+align+embed"])
def test_an_image_that_kills_its_process_is_left_out(on_disk, new_output, shared_ray, tmp_path, figures, pools):
    """All other images are done. The next run tries this one again and succeeds."""
    place = new_output(on_disk)
    faults = Faults(kill="13.png", kill_times=100, marks=str(tmp_path))
    shared_ray.run(place, "--pools", pools, faults=faults)
    rows = {row["uri"]: row for row in ledger.read_ledger(place.storage, ("uri", "status", "error")).to_pylist()}
    assert len(rows) == place.images
    assert [Path(uri).name for uri, row in rows.items() if row["status"] == "failed"] == ["13.png"]
    assert "died 2 times at this image" in rows[f"{place.input}/13.png"]["error"]
    deaths = faults.count("killed")
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures(f"an image that kills its process ({pools})", deaths=deaths, images_left_out=1, rows_lost=0)


def test_a_gpu_that_fails_costs_a_process_and_no_image(on_disk, new_output, shared_ray, tmp_path, figures):
    place, faults = new_output(on_disk), Faults(device=3, marks=str(tmp_path))
    shared_ray.run(place, "--threads", 1, faults=faults)      # two threads would meet two of them in one process
    assert_exact(place, on_disk.expected)
    assert len(set(marked_pids(tmp_path, "device"))) == 3
    figures("errors of the GPU (simulated)", processes_ended=3, rows_lost=0)


def test_a_full_disk_in_an_actor_ends_the_run_and_marks_no_image(on_disk, new_output, shared_ray, figures):
    place = new_output(on_disk)
    job = shared_ray.start(place, faults=Faults(full_disk=True))
    assert job.wait() == 1
    assert "the run broke: [Errno 28] No space left on device: free space" in job.printed()
    assert "Traceback" not in job.printed() and len(ledger.read_ledger(place.storage, ("uri",))) == 0
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("the disk of an actor is full", images_failed=0, rows_lost=0)


def test_a_node_is_lost_and_another_one_comes(on_disk, new_output, own_ray, tmp_path, figures):
    """A head with one CPU and a node with two run two actors of one CPU each, so the lost node runs at least one."""
    place = new_output(on_disk)
    faults = Faults(image_s=0.2, marks=str(tmp_path))
    with cluster(num_cpus=1) as nodes:
        lost = nodes.add_node(num_cpus=2)
        job = own_ray.start_and_reach(
            lambda job: len(ledger.committed_parts(place.storage)) >= 2, place, "--shared-filesystem", "--pools",
            "decode+detect+keypoint+align+embed:2", faults=faults, RAY_ADDRESS=nodes.address,
        )
        nodes.add_node(num_cpus=2)
        nodes.remove_node(lost, allow_graceful=False)
        actors = set(marked_pids(tmp_path, "detect"))
        assert wait_until(lambda: not all(map(process_start, actors)), job)
        dead = [pid for pid in actors if not process_start(pid)]
        code = job.wait()
        if code == 1:
            assert "Committed images are kept. To resume, run:" in job.printed() and "Traceback" not in job.printed()
            own_ray.run(place, "--shared-filesystem", RAY_ADDRESS=nodes.address)
        else:
            assert code == 0, job.printed()
    assert_exact(place, on_disk.expected)
    figures("a node of two killed, another added", exit_code=code, processes_lost=len(dead), rows_lost=0)


def test_an_object_store_that_is_full(own_ray, shared_ray, tmp_path, figures):
    """Images of 270 MB decoded pass from pool to pool through an object store of 80 MB."""
    (tmp_path / "in").mkdir()
    for number in range(30):
        pixels = np.full((1500, 2000, 3), number * 8, np.uint8)
        pixels[::7, ::5] = np.random.default_rng(number).integers(0, 256, 3)
        cv2.imwrite(str(tmp_path / "in" / f"{number:02}.jpg"), pixels)
    place = Place(str(tmp_path / "in"), str(tmp_path / "undisturbed"), 30, (
        "--detect-px", 160, "--second-pass-px", 0, "--decode-scale", "full", "--rows-per-file", 5))
    shared_ray.run(place)
    full = place.with_output(str(tmp_path / "out"))
    with cluster(num_cpus=2, object_store_memory=80 << 20) as nodes:
        own_ray.run(full, "--pools", "decode/detect/keypoint+align+embed", RAY_ADDRESS=nodes.address,
                    faults=Faults(image_s=0.05))
    assert_exact(full, read_tables(place.storage))
    figures("object store full", decoded_mb=270, object_store_mb=80, rows_lost=0)
