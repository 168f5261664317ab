"""How long `jobs.extract` of two photos takes, against Ray with one actor that does nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.job import EXTRACT, Finished, run_job
from jobs.bench.measurement import Measurement
from pipeline.run.cluster import REPOSITORY

BARE_RAY = (sys.executable, "-m", "jobs.bench.bare_ray")
TWO = "start: jobs.extract of two photos"
RATIO = "start: the ratio of both"


@dataclass(frozen=True)
class Start:
    """Both, one after the other, in every round.

    options: of the job. variant: those of them that the name of the row shows. With a variant Ray alone is not
    measured; one that compiles the networks is measured with an empty cache of compiled networks too.
    """

    photos: Path
    options: Sequence[str]
    variant: str = ""
    bare: Sequence[str] = BARE_RAY
    command: Sequence[str] = EXTRACT

    @property
    def name(self) -> str:
        """As of the row."""
        return f"{TWO}, {self.variant}" if self.variant else TWO

    def measure(self) -> list[Measurement]:
        """Run both once."""
        bare_s = None if self.variant else seconds_of(self.bare)
        rows = [self._row(self.name, run_job(self.photos, self.options, command=self.command))]
        if bare_s is not None:
            rows += [
                Measurement("start: Ray with one idle actor", bare_s, "s"),
                Measurement(RATIO, rows[0].value / bare_s, "times"),
            ]
        if "--compile" in self.options:
            rows.append(self._row(f"{self.name}, with an empty cache", self._with_empty_cache()))
        return rows

    def close(self) -> None:
        """Nothing is kept between rounds."""

    def _with_empty_cache(self) -> Finished:
        """As on a machine where the job never ran: caches lie in the folder for temporary files."""
        with tempfile.TemporaryDirectory(prefix="fl") as empty:
            environment = {"TMPDIR": empty, "RAY_TMPDIR": tempfile.gettempdir()}
            return run_job(self.photos, self.options, command=self.command, environment=environment)

    def _row(self, name: str, done: Finished) -> Measurement:
        return Measurement(name, done.seconds, "s", {"first rows after, s": done.commits[0].moment - done.begun})


def seconds_of(command: Sequence[str]) -> float:
    """The time of a process. Raises CalledProcessError."""
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
