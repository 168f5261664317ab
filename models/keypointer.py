"""The keypointer: twelve eye points for every face chip, six around each eye."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from models.engines.engine import Network, Runtime, open_network
from models.padded_batches import PaddedBatches
from models.store import StoredModel

POINTS = 12


@runtime_checkable
class DeviceChips(Protocol):
    """Chips in the memory of the network's device."""

    def __len__(self) -> int: ...

    def middles(self, fraction: float, side_px: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """As `middles` gives them."""


Chips = Sequence[np.ndarray] | DeviceChips


class Keypointer:
    """Chips to eye points, in batches of one fixed shape.

    network: (b, input_px, input_px, 3) uint8 RGB to (b, 12, 2), points as fractions of the input; or to (b, 13, 2), the
    last row the spreads of the left and the right eye, as fractions of the input's side. chip_fraction: the share of
    the chip's side that the network sees, around the middle.
    """

    def __init__(self, network: Network, *, batch_size: int, input_px: int, chip_fraction: float) -> None:
        self._input_px, self._chip_fraction = input_px, chip_fraction
        self._batches = PaddedBatches(network, batch_size)

    def __call__(self, chips: Chips) -> np.ndarray:
        """chips: n × (s, s, 3) uint8 RGB, any s. Returns (n, 12, 2) float32 points in pixels of their chip."""
        return self.with_spreads(chips)[0]

    def with_spreads(self, chips: Chips) -> tuple[np.ndarray, np.ndarray]:
        """The points, and how far the left and the right eye may be off, (n, 2) float32 pixels of the chip.

        The spreads are NaN if the network does not say them.
        """
        if not len(chips):
            return np.zeros((0, POINTS, 2), np.float32), np.zeros((0, 2), np.float32)
        find = chips.middles if isinstance(chips, DeviceChips) else partial(middles, chips)
        views, sides, margins = find(self._chip_fraction, self._input_px)
        fractions = self._batches(views)
        points = fractions[:, :POINTS] * sides[:, None, None] + margins[:, None, None]
        if fractions.shape[1] == POINTS:
            return points, np.full((len(points), 2), np.nan, np.float32)
        return points, fractions[:, POINTS] * sides[:, None]


def middles(
    chips: Sequence[np.ndarray], fraction: float, side_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle squares of n ≥ 1 chips at another size, (n, side_px, side_px, 3) uint8, their sides and margins.

    Sides and margins are (n,) float32, in pixels of the chip.
    """
    views, margins = zip(*(middle(chip, fraction) for chip in chips), strict=True)
    sides = np.array([len(view) for view in views], np.float32)
    return np.stack([resize(view, side_px) for view in views]), sides, np.array(margins, np.float32)


def middle(chip: np.ndarray, fraction: float) -> tuple[np.ndarray, int]:
    """The middle square of a chip (s, s, 3) and its margin in pixels; its side is about fraction × s, at least 1."""
    margin = min(round(len(chip) * (1 - fraction) / 2), (len(chip) - 1) // 2)
    return chip[margin : len(chip) - margin, margin : len(chip) - margin], margin


def resize(image: np.ndarray, side_px: int) -> np.ndarray:
    """A square image at another size: averaged if it shrinks, interpolated if it grows."""
    interpolation = cv2.INTER_AREA if len(image) > side_px else cv2.INTER_LINEAR
    return cv2.resize(image, (side_px, side_px), interpolation=interpolation)


def load_keypointer(model: StoredModel, runtime: Runtime, *, batch_size: int) -> Keypointer:
    """The keypointer ready to call. Raises WeightsError."""
    input_px = model.card.architecture["input_px"]
    return Keypointer(
        open_network(model, runtime, [(batch_size, input_px, input_px, 3)]), batch_size=batch_size, input_px=input_px,
        chip_fraction=model.card.preprocessing["chip_fraction"],
    )
