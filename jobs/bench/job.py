"""`jobs.extract` as a process: its speed once it runs, its start, its memory, and how busy the GPU is meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from jobs.bench.gpu_meter import GpuMeter, ReadBusy
from jobs.bench.measurement import Measurement
from jobs.bench.memory import JobMemory
from jobs.command import Broke

EXTRACT = (sys.executable, "-m", "jobs.extract")


@dataclass(frozen=True, slots=True)
class Commit:
    """A part that was committed: when, by `time.time`, and its images."""

    moment: float
    images: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A run of the job. begun, ended: moments of `time.time`. peaks: of `JobMemory`, bytes."""

    begun: float
    ended: float
    commits: Sequence[Commit]
    run: Mapping[str, dict[str, float]]
    peaks: Mapping[str, int]
    meter: GpuMeter

    @property
    def seconds(self) -> float:
        """From the start of the process to its end."""
        return self.ended - self.begun

    @property
    def rate(self) -> float:
        """Images a second without the start of Ray and the models, as run.json has it."""
        return self.run["throughput"]["images_per_s_after_start"]


@dataclass(frozen=True)
class JobRounds:
    """The job in one layout of pools. Each round is a run of its own.

    Its rate is without the start of Ray and the models.
    """

    name: str
    photos: Path
    options: Sequence[str]
    read_busy: ReadBusy | None = None
    command: Sequence[str] = EXTRACT
    environment: Mapping[str, str] = field(default_factory=dict)

    def measure(self) -> list[Measurement]:
        """Run it once."""
        done = run_job(self.photos, self.options, self.read_busy, self.command, self.environment)
        first = done.commits[0].moment if done.commits else done.ended
        notes = {"first rows after, s": first - done.begun, "in all, s": done.seconds,
                 "faces": done.run["this_run"]["faces"]}
        notes |= {f"{name}, GB" if name != "uss" else "memory, GB": done.peaks[name] / 1e9
                  for name in ("uss", "driver", "actors", "writers")}
        busy = done.meter.busy(first, done.commits[-1].moment) if done.commits else None
        return [Measurement(self.name, done.rate, notes=notes | ({} if busy is None else {"GPU busy, %": busy}))]

    def close(self) -> None:
        """Nothing is kept between rounds."""


def run_job(
    photos: Path, options: Sequence[str], read_busy: ReadBusy | None = None, command: Sequence[str] = EXTRACT,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run the job into a new output. Raises Broke with its last line if it fails."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        begun = time.time()
        job = subprocess.Popen(
            [*command, str(photos), folder, *options], stdout=printed, stderr=printed,
            env={**os.environ, **(environment or {})},
        )
        with JobMemory(job.pid) as memory, GpuMeter(read_busy) as meter:
            wait_for(job)
        ended = time.time()
        if job.returncode:
            printed.seek(0)
            raise Broke(f"jobs.extract ended with {job.returncode}: {printed.read().decode(errors='replace')[-2000:]}")
        run = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
        return Finished(begun, ended, commits_of(Path(folder)), run, memory.peaks, meter)


def wait_for(job: subprocess.Popen[bytes]) -> None:
    """Wait until it ends; end it if this process is interrupted."""
    try:
        job.wait()
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait()


def commits_of(output: Path) -> list[Commit]:
    """The parts of an output in the order of their commits."""
    parts = (output / "images").glob("*.parquet")
    return sorted(
        (Commit(part.stat().st_mtime, pq.read_metadata(part).num_rows) for part in parts),
        key=lambda commit: commit.moment,
    )
