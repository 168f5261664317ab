"""How long `jobs.extract` of two photos takes, against Ray with one actor that does nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.job import run_job
from jobs.bench.measurement import Measurement
from pipeline.run.cluster import REPOSITORY

BARE_RAY = (sys.executable, "-m", "jobs.bench.bare_ray")
TWO = "start: jobs.extract of two photos"
RATIO = "start: the ratio of both"


@dataclass(frozen=True)
class Start:
    """Both, one after the other, in every round. cold: also with empty caches of compiled networks."""

    photos: Path
    options: Sequence[str]
    cold: bool
    name: str = "start"

    def measure(self) -> list[Measurement]:
        """Run both once."""
        bare_s = seconds_of(BARE_RAY)
        done = run_job(self.photos, self.options)
        rows = [
            Measurement(TWO, done.seconds, "s", {"first rows after, s": done.commits[0].moment - done.begun}),
            Measurement("start: Ray with one idle actor", bare_s, "s"),
            Measurement(RATIO, done.seconds / bare_s, "times"),
        ]
        return [*rows, *([self.measure_cold()] if self.cold else [])]

    def measure_cold(self) -> Measurement:
        """As on a machine where the job never ran: caches lie in the folder for temporary files."""
        with tempfile.TemporaryDirectory(prefix="fl") as empty:
            environment: Mapping[str, str] = {"TMPDIR": empty, "RAY_TMPDIR": tempfile.gettempdir()}
            done = run_job(self.photos, self.options, environment=environment)
        first_s = done.commits[0].moment - done.begun
        return Measurement("start: with empty caches", done.seconds, "s", {"first rows after, s": first_s})

    def close(self) -> None:
        """Nothing is kept between rounds."""


def seconds_of(command: Sequence[str]) -> float:
    """The time of a process. Raises CalledProcessError."""
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
