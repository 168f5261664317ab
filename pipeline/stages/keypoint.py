"""The third stage: find the eyes of every face."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline import geometry
from pipeline.batch import Chips, FaceBatch

EyeModel = Callable[[Chips], tuple[np.ndarray, np.ndarray]]
"""From n chips, each (s, s, 3) uint8 RGB, to points (n, 12, 2) float32, and how far the left and the right eye may be
off, (n, 2) float32, NaN if it does not say so; both in pixels of the chip."""


class Keypoint:
    """Find the twelve eye points of every face chip.

    The order is that of the 300-W points 36 to 47: 0–5 are the eye on the left of the upright face, 6–11 the other.
    """

    def __init__(self, locate_eyes: EyeModel) -> None:
        self._locate_eyes = locate_eyes

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        points_chip, spreads_chip = self._locate_eyes(batch.chips)
        longer_chip = geometry.longer_sides(batch.boxes_xyxy) / geometry.scales(batch.chip_to_image)
        spread = (spreads_chip.max(axis=1) / longer_chip).astype(np.float32)
        return batch.with_eyes(batch.chip_points_to_image(points_chip), spread)
