"""Where the detector looks in an image, and how the faces of several looks become one list.

A face is found by its size in the detector's input. In a long or a large picture a look at the whole makes faces too
small, so the detector also looks at windows of it. Windows overlap by a quarter of their side: a face up to that size
is whole in one of them, a larger one is found by a look at more of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOUND_PX = 20           # the smallest faces in the detector's input that it finds well: AP 0.93, 0.87 from 10 px on
LONG_RATIO = 2.0        # of the sides; a window of a long picture has this shape too
LONGEST_WINDOWS = 100   # a picture of 50,000×1 px is not looked at in windows of 2×1
LEAST_WINDOW_PX = 160   # the same for 3,000×1 px
OVERLAP = 0.25          # of a window's side
BORDER_SHARE = 0.01     # of a window's side: a box that ends so near to an inner border is cut by it
INSIDE = 0.8            # share of a box that lies in another
LARGER = 2.0            # times the side of a box, for another look's box to count as the face that it is part of

Detections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes (n, 4), scores (n,) and five points of each face (n, 5, 2), all float32; the points may be NaN."""

Box = tuple[int, int, int, int]
"""x1 y1 x2 y2 in whole pixels of the decoded image."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Chooses the looks at an image by its size alone.

    input_px: side of the detector's square input. long_windows: look at pictures longer than 2:1 in windows too.
    find_px: look at every picture in as many windows as it takes to find faces of this height, pixels of the original.
    """

    input_px: int
    long_windows: bool = False
    find_px: int | None = None

    def window_sides(self, width: int, height: int) -> list[float]:
        """The sides of the windows, level by level, in pixels of an original of this size; none if the whole is enough.

        From one level to the next the side halves at most, so that faces between the levels are found.
        """
        sides, side = [], float(max(width, height))
        window = max(LONG_RATIO * min(width, height), side / LONGEST_WINDOWS, LEAST_WINDOW_PX)
        if self.long_windows and side > window:
            side = window
            sides.append(side)
        if self.find_px is not None:
            last = self.input_px * self.find_px / FOUND_PX
            while side > last:
                side = max(side / 2, last)
                sides.append(side)
        return sides

    def min_side_px(self, width: int, height: int) -> int:
        """How long the longest side of the decoded picture must be: every look gets twice the detector's input."""
        smallest = min([max(width, height), *self.window_sides(width, height)])
        return math.ceil(2 * self.input_px * max(width, height) / max(smallest, 1))

    def boxes(self, size_wh: tuple[int, int], decoded_wh: tuple[int, int]) -> list[Box]:
        """What to look at: the whole first, then the windows, level by level, from the top left on."""
        width, height = decoded_wh
        per_pixel = max(decoded_wh) / max(size_wh)
        found = [(0, 0, width, height)]
        for side in self.window_sides(*size_wh):
            found += [(x1, y1, x2, y2) for y1, y2 in spans(height, side * per_pixel)
                      for x1, x2 in spans(width, side * per_pixel)]
        return found

    def count(self, width: int, height: int) -> int:
        """How many looks a picture of this size takes."""
        return len(self.boxes((width, height), (width, height)))


def spans(length: int, side: float) -> list[tuple[int, int]]:
    """Cut a length into stretches of at most `side` that overlap by a quarter of it or more, evenly spread."""
    side = max(1, round(side))
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - OVERLAP * side) / (side - OVERLAP * side))
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def merge(
    size_wh: tuple[int, int], looks: Sequence[Box], found: Sequence[Detections], nms_iou: float
) -> Detections:
    """The faces of all looks at one image, each once.

    looks: of `Looks.boxes`. found: for each look its faces, pixels of the image of this size. Returns them for all,
    best first, whole boxes before those that a window cuts. Of two boxes of different looks that overlap by more than
    nms_iou the later goes. So does a box inside another if a window cuts it, or if the other is twice as large and has
    at least its score: it is a part of that face.
    """
    if len(found) == 1:
        return found[0]
    boxes, scores, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
    look = np.repeat(np.arange(len(found)), [len(each) for each, *_ in found])
    cut = np.concatenate([_is_cut(each, of, size_wh) for (each, *_), of in zip(found, looks, strict=True)])
    order = np.lexsort((look, -scores, cut))
    boxes, scores, look, cut = boxes[order], scores[order], look[order], cut[order]
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    kept: list[int] = []
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            alive &= ~((look != look[i]) & _repeats(boxes, areas, scores, cut, i, nms_iou))
    return boxes[kept], scores[kept], points[order][kept]


def _is_cut(boxes: np.ndarray, look: Box, size_wh: tuple[int, int]) -> np.ndarray:
    """Which boxes end at a border of the look inside the image."""
    x1, y1, x2, y2 = look
    near = BORDER_SHARE * max(x2 - x1, y2 - y1)
    cut = np.zeros(len(boxes), bool)
    for column, border, sign, inner in (
        (0, x1, 1, x1 > 0), (1, y1, 1, y1 > 0), (2, x2, -1, x2 < size_wh[0]), (3, y2, -1, y2 < size_wh[1])
    ):
        if inner:
            cut |= sign * (boxes[:, column] - border) < near
    return cut


def _repeats(
    boxes: np.ndarray, areas: np.ndarray, scores: np.ndarray, cut: np.ndarray, i: int, nms_iou: float
) -> np.ndarray:
    """Which boxes show the face of box i again, or a part of it."""
    shared = np.minimum(boxes[:, 2:], boxes[i, 2:]) - np.maximum(boxes[:, :2], boxes[i, :2])
    overlap = np.maximum(shared, 0).prod(axis=1)
    same = overlap > nms_iou * (areas + areas[i] - overlap)
    inside = overlap >= INSIDE * np.maximum(areas, 1e-6)
    part = inside & (cut | ((areas * LARGER**2 <= areas[i]) & (scores <= scores[i])))
    part &= areas <= areas[i]
    part[i] = False
    repeats: np.ndarray = same | part
    return repeats
