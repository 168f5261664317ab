import os
import subprocess
import sys
import time

import cv2
import pytest

from jobs.bench.memory import JobMemory, processes_of, write_photos


@pytest.mark.parametrize(("name", "counted"), [("worker", True), ("raylet", False)])
def test_memory_counts_children_without_rays_services(name, counted):
    hold = "x = bytearray(200 << 20); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([{name!r}, '-c', {hold!r}], executable=sys.executable)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.read(1)
    memory = JobMemory(process.pid)
    memory.sample()
    process.communicate(b"\n")
    memory.sample()
    large = {kind for kind, peak in memory.peaks.items() if peak > 200 << 20}
    assert large == ({"rss", "pss", "uss", "actors"} if counted else set())


def test_a_process_that_is_gone_has_no_memory():
    assert list(processes_of(2**22 + 1)) == []


def test_memory_is_sampled_while_the_block_runs(monkeypatch):
    monkeypatch.setattr("jobs.bench.memory.SAMPLE_S", 0.01)
    with JobMemory(os.getpid()) as memory:
        while not memory.peaks["driver"]:
            time.sleep(0.01)
    assert memory.peaks["rss"] >= memory.peaks["pss"] >= memory.peaks["uss"] > 0


def test_photos_for_the_memory_bench_have_the_given_size(tmp_path):
    write_photos(tmp_path, 2, 1.0)
    shapes = [cv2.imread(str(path)).shape for path in sorted(tmp_path.iterdir())]
    assert len(shapes) == 2 and all(abs(h * w - 1e6) < 1e4 for h, w, _ in shapes)
