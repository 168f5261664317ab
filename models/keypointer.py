"""The keypointer: twelve eye points for every face chip, six around each eye."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from models.engines.engine import Network, Runtime, open_network
from models.eye_layout import MIRRORED
from models.padded_batches import PaddedBatches
from models.store import StoredModel, WeightCard, WeightsError
from pipeline.geometry import eye_centres

POINTS = 12


class View(NamedTuple):
    """What the network sees of a chip: this share of its side, around the middle, mirrored or not."""

    fraction: float
    mirrored: bool = False


@runtime_checkable
class DeviceChips(Protocol):
    """Chips in the memory of the network's device."""

    def __len__(self) -> int: ...

    def views(self, views: Sequence[View], side_px: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """As `views_of` gives them."""


Chips = Sequence[np.ndarray] | DeviceChips


class Keypointer:
    """Chips to eye points, in batches of one fixed shape.

    network: (b, input_px, input_px, 3) uint8 RGB to (b, 12, 2), points as fractions of the input; or to (b, 13, 2), the
    last row the spreads of the left and the right eye, as fractions of the input's side. views: of each chip; points
    and spreads are the mean of what the network finds on them. lift: by how much all points then move up the face, as a
    share of the chip's side.
    """

    def __init__(
        self, network: Network, *, batch_size: int, input_px: int, views: Sequence[View], lift: float = 0.0
    ) -> None:
        self._input_px, self._views, self._lift = input_px, tuple(views), lift
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
        find = chips.views if isinstance(chips, DeviceChips) else partial(views_of, chips)
        inputs, sides, margins = find(self._views, self._input_px)
        found = self._batches(inputs).reshape(len(self._views), len(chips), -1, 2)
        found = np.stack([
            mirrored_back(of) if view.mirrored else of for view, of in zip(self._views, found, strict=True)
        ])
        points = (found[:, :, :POINTS] * sides[..., None, None] + margins[..., None, None]).mean(axis=0)
        if self._lift:
            points = lifted(points, self._lift * (sides[0] + 2 * margins[0]))
        if found.shape[2] == POINTS:
            return points, np.full((len(chips), 2), np.nan, np.float32)
        return points, (found[:, :, POINTS] * sides[..., None]).mean(axis=0)


def lifted(points: np.ndarray, by_px: np.ndarray) -> np.ndarray:
    """Points (n, 12, 2) moved up the face, square to the line between the eyes, by (n,) pixels."""
    left, right = eye_centres(points)
    line = right - left
    up = np.stack([line[:, 1], -line[:, 0]], axis=1) / np.maximum(np.linalg.norm(line, axis=1, keepdims=True), 1e-6)
    moved: np.ndarray = points + (up * by_px[:, None])[:, None].astype(points.dtype)
    return moved


def mirrored_back(found: np.ndarray) -> np.ndarray:
    """What the network found on mirrored inputs, (n, 12 or 13, 2), as it is on the inputs themselves."""
    points = found[:, MIRRORED] * np.array((-1, 1), np.float32) + np.array((1, 0), np.float32)
    return np.concatenate([points, found[:, POINTS:, ::-1]], axis=1)


def views_of(
    chips: Sequence[np.ndarray], views: Sequence[View], side_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The views of n ≥ 1 chips at another size, (v · n, side_px, side_px, 3) uint8, all chips by the first view first.

    And the sides and margins of the middle squares that they show, (v, n) float32, in pixels of the chip.
    """
    seen = {view.fraction: middles(chips, view.fraction, side_px) for view in views}
    inputs = [seen[view.fraction][0][:, :, :: -1 if view.mirrored else 1] for view in views]
    sides, margins = (np.stack([seen[view.fraction][i] for view in views]) for i in (1, 2))
    return np.concatenate(inputs), sides, margins


def middles(
    chips: Sequence[np.ndarray], fraction: float, side_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle squares of n ≥ 1 chips at another size, (n, side_px, side_px, 3) uint8, their sides and margins.

    Sides and margins are (n,) float32, in pixels of the chip.
    """
    squares, margins = zip(*(middle(chip, fraction) for chip in chips), strict=True)
    sides = np.array([len(square) for square in squares], np.float32)
    return np.stack([resize(square, side_px) for square in squares]), sides, np.array(margins, np.float32)


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
        views=views_in(model.card), lift=lift_in(model.card),
    )


def views_in(card: WeightCard) -> list[View]:
    """The views that a card names: `views`, pairs of a share and whether it is mirrored, else one of `chip_fraction`.

    Raises WeightsError for others.
    """
    preprocessing = card.preprocessing
    match preprocessing.get("views", [[preprocessing.get("chip_fraction"), False]]):
        case [_, *_] as named if all(_is_view(view) for view in named):
            return [View(float(fraction), mirrored) for fraction, mirrored in named]
    raise WeightsError(
        f"the card of {card.identity} does not say what to see of a face: chip_fraction must be a share of the "
        "chip's side, and views, where there are some, such shares and whether they are mirrored, as in [[0.75, false]]"
    )


def lift_in(card: WeightCard) -> float:
    """By how much of the chip's side the points move up the face, 0 where the card does not say.

    Raises WeightsError where it is no number.
    """
    match card.preprocessing.get("lift", 0.0):
        case bool():
            pass
        case int() | float() as lift:
            return float(lift)
    raise WeightsError(f"lift in the card of {card.identity} must be a number, a share of the chip's side, as 0.002")


def _is_view(view: Any) -> bool:
    match view:
        case [int() | float() as fraction, bool()]:
            return 0 < fraction <= 1
    return False
