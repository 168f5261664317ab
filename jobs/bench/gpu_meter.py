"""How busy the GPUs are, by NVML (the package nvidia-ml-py); without it or without a GPU nothing is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jobs.bench.sampling import Sampling

SAMPLE_S = 0.1
ReadBusy = Callable[[], float]
"""Percent of the last moments in which the GPUs computed, their mean."""


class GpuMeter(Sampling):
    """Samples how busy the GPUs are inside the `with` block. read: None where that is unknown."""

    def __init__(self, read: ReadBusy | None) -> None:
        super().__init__(SAMPLE_S)
        self._read = read
        self._samples: list[tuple[float, float]] = []

    def busy(self, begin: float, end: float) -> float | None:
        """The mean percent between two moments of `time.time`; None without a sample."""
        found = [percent for moment, percent in self._samples if begin <= moment <= end]
        return sum(found) / len(found) if found else None

    def sample(self) -> None:
        """Measure now."""
        if self._read:
            self._samples.append((time.time(), self._read()))


def nvml() -> ReadBusy | None:
    """Reads all GPUs of this machine; None if there is none, or no NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    library: Any = pynvml
    try:
        library.nvmlInit()
        gpus = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    except library.NVMLError:
        return None

    def read() -> float:
        return sum(float(library.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in gpus) / len(gpus)

    return read if gpus else None
