import subprocess
import sys

import cv2
import pytest

from jobs.bench.memory import memory_of_job, write_photos


@pytest.mark.parametrize(("name", "counted"), [("worker", True), ("raylet", False)])
def test_memory_counts_children_without_rays_services(name, counted):
    hold = "x = bytearray(200 << 20); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([{name!r}, '-c', {hold!r}], executable=sys.executable)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.read(1)
    memory = memory_of_job(process.pid)
    process.communicate(b"\n")
    assert (memory["pss"] > 200 << 20) == (memory["rss"] > 200 << 20) == counted


def test_memory_of_a_process_that_is_gone():
    assert memory_of_job(2**22 + 1) == {"rss": 0, "pss": 0}


def test_photos_for_the_memory_bench_have_the_given_size(tmp_path):
    write_photos(tmp_path, 2, 1.0)
    shapes = [cv2.imread(str(path)).shape for path in sorted(tmp_path.iterdir())]
    assert len(shapes) == 2 and all(abs(h * w - 1e6) < 1e4 for h, w, _ in shapes)
