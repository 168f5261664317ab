"""`jobs.bench memory`: the peak memory of the whole job."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil

from jobs.bench.sampling import Sampling

# Parts of the command lines of Ray's own processes.
RAY_SERVICES = (
    "gcs_server", "raylet", "log_monitor", "dashboard", "runtime_env", "agent.py", "monitor.py", "ray::DashboardAgent",
    "ray::RuntimeEnvAgent", "ray::ActorLocationTracker", "ray::_StatsActor", "ray::_AutoscalingCoordinatorActor",
)
SAMPLE_S = 1.0
WRITER = "ray::MapBatches(write)"      # what Ray calls the process of a task of the sink
KINDS = ("rss", "pss", "uss")


class JobMemory(Sampling):
    """The memory of a process and its descendants, without Ray's services, sampled inside the `with` block.

    peaks: the most bytes at one moment: resident (rss), shared pages counted once (pss), not shared (uss), and the uss
    of driver, actors and writers.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(SAMPLE_S)
        self.peaks: dict[str, int] = dict.fromkeys((*KINDS, "driver", "actors", "writers"), 0)
        self._pid = pid
        self._writers: set[int] = set()

    def sample(self) -> None:
        """Measure now."""
        now = dict.fromkeys(self.peaks, 0)
        for process, command, memory in processes_of(self._pid):
            if command.startswith(WRITER):
                self._writers.add(process)
            role = "driver" if process == self._pid else "writers" if process in self._writers else "actors"
            now[role] += memory["uss"]
            for kind in KINDS:
                now[kind] += memory[kind]
        self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}


def processes_of(pid: int) -> Iterator[tuple[int, str, dict[str, int]]]:
    """Pid, command and memory of a process and of its descendants, without Ray's services."""
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            command = " ".join(process.cmdline()[:3])
            if any(service in command for service in RAY_SERVICES):
                continue
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        yield process.pid, command, {kind: getattr(memory, kind) for kind in KINDS}


def bench_memory(photos: int, megapixels: float) -> None:
    """Run the job on generated photos, and print the peak memory of its processes without Ray's services."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "photos", Path(folder) / "out"
        source.mkdir()
        write_photos(source, photos, megapixels)
        command = [sys.executable, "-m", "jobs.extract", str(source), str(output)]
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        with JobMemory(job.pid) as memory:
            job.wait()
        run = json.loads((output / "run.json").read_text())
    print(f"exit code {job.returncode}, {run['this_run']['images']} images of {megapixels:g} megapixels, "
          f"{run['throughput']['images_per_s']} images/s")
    in_gib = {name: f"{peak / 2**30:.2f} GiB" for name, peak in memory.peaks.items()}
    print(f"peak of all processes but Ray's services: {in_gib['pss']} (shared pages counted once), "
          f"{in_gib['rss']} (counted in every process), {in_gib['uss']} (without shared pages; driver "
          f"{in_gib['driver']}, actors {in_gib['actors']}, writers {in_gib['writers']})")


def write_photos(folder: Path, count: int, megapixels: float) -> None:
    """Write JPEGs 4:3 of smooth noise, which compress like photos."""
    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04}.jpg"), np.roll(picture, 37 * i, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 90])
