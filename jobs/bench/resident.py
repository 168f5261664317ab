"""A process that loads once and runs a round whenever it is asked; so others can run between its rounds."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence

from jobs.bench.measurement import Measurement
from pipeline.run.cluster import REPOSITORY

READY = "ready\n"


class LeftOut(Exception):   # noqa: N818
    """This machine cannot run one of the programs; the message is the reason."""


class Resident:
    """A process whose module calls `measurement.serve`. Raises LeftOut when it cannot start."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        while self._answer() != READY:      # before, imports may print
            pass

    def measure(self) -> list[Measurement]:
        """One round. Raises LeftOut when the process ends."""
        if self._process.stdin is None or self._process.poll() is not None:
            raise LeftOut(self._last_line())
        print(file=self._process.stdin, flush=True)
        return [Measurement(**values) for values in json.loads(self._answer())]

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._process.wait()
            raise LeftOut(self._last_line())
        return line

    def _last_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self._process.returncode}"
