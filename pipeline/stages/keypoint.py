"""Find the eyes of every face."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.batch import FaceBatch

EyeModel = Callable[[Sequence[np.ndarray]], np.ndarray]
"""n chips, each (s, s, 3) uint8 RGB, to (n, 12, 2) float32 points in pixels of their chip."""


class Keypoint:
    """Find the twelve eye points of every face chip.

    The order is that of points 36 to 47 of 300-W: 0–5 the eye on the left of the upright image, 6–11 the other.
    """

    def __init__(self, locate_eyes: EyeModel) -> None:
        self._locate_eyes = locate_eyes

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        points_chip = self._locate_eyes(batch.chips)
        return batch.with_eyes(batch.chip_points_to_image(points_chip))
