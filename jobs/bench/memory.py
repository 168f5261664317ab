"""`jobs.bench memory`: the peak memory of the whole job."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

# Parts of the command lines of Ray's own processes.
RAY_SERVICES = ("gcs_server", "raylet", "log_monitor", "dashboard", "runtime_env", "agent.py", "monitor.py")
SAMPLE_S = 0.5


def bench_memory(photos: int, megapixels: float) -> None:
    """Run the job on generated photos, and print the peak memory of its processes without Ray's services."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "photos", Path(folder) / "out"
        source.mkdir()
        write_photos(source, photos, megapixels)
        command = [sys.executable, "-m", "jobs.extract", str(source), str(output)]
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        peaks = {"rss": 0, "pss": 0}
        while job.poll() is None:
            for kind, amount in memory_of_job(job.pid).items():
                peaks[kind] = max(peaks[kind], amount)
            time.sleep(SAMPLE_S)
        run = json.loads((output / "run.json").read_text())
    print(f"exit code {job.returncode}, {run['this_run']['images']} images of {megapixels:g} megapixels, "
          f"{run['throughput']['images_per_s']} images/s")
    print(f"peak of all processes but Ray's services: {peaks['pss'] / 2**30:.2f} GiB (shared pages counted once), "
          f"{peaks['rss'] / 2**30:.2f} GiB (counted in every process)")


def write_photos(folder: Path, count: int, megapixels: float) -> None:
    """Write JPEGs 4:3 of smooth noise, which compress like photos."""
    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04}.jpg"), np.roll(picture, 37 * i, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 90])


def memory_of_job(pid: int) -> dict[str, int]:
    """Bytes of a process and its descendants, without Ray's services: resident (rss), and shared pages once (pss)."""
    total = {"rss": 0, "pss": 0}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in processes:
        try:
            command = " ".join(process.cmdline()[:3])
            if any(service in command for service in RAY_SERVICES):
                continue
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total["rss"] += memory.rss
        total["pss"] += memory.pss
    return total
