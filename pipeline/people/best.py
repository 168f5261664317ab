"""The most alike faces of every probe so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Best:
    """The most alike faces of every probe so far, best first: cosines (n, k), and part and row of each (n, k).

    A part of −1 marks a place that is not taken yet.
    """

    cosines: np.ndarray
    parts: np.ndarray
    rows: np.ndarray

    @classmethod
    def none(cls, probes: int, k: int) -> Best:
        """Nothing found yet."""
        return cls(
            np.full((probes, k), -np.inf, np.float32), np.full((probes, k), -1, np.int32),
            np.zeros((probes, k), np.int32),
        )

    def add(self, probes: np.ndarray, cosines: np.ndarray, parts: np.ndarray, rows: np.ndarray) -> None:
        """Keep the best of these (m, any) and of those before, for the probes with these numbers (m,)."""
        k = self.cosines.shape[1]
        joined = [
            np.concatenate([mine[probes], theirs], axis=1)
            for mine, theirs in ((self.cosines, cosines), (self.parts, parts), (self.rows, rows))
        ]
        order = np.argsort(-joined[0], axis=1, kind="stable")[:, :k]
        for mine, both in zip((self.cosines, self.parts, self.rows), joined, strict=True):
            mine[probes] = np.take_along_axis(both, order, axis=1)
