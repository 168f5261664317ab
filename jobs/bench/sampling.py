"""A thread that takes samples inside a `with` block."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Sampling(ABC):
    """Calls `sample` every `every_s` seconds inside the `with` block."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    @abstractmethod
    def sample(self) -> None:
        """Measure now."""

    def _keep_sampling(self) -> None:
        while not self._closed.wait(self._every_s):
            self.sample()
