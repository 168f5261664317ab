"""From the detector's raw output to boxes, in NumPy and float32, whatever engine ran the network.

The arithmetic stays in float32 when the network ran in half precision. In half precision a coordinate of 800 px is
rounded to half a pixel, and embeddings differ by a cosine of up to 0.18.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline.geometry import FIVE, no_points

STRIDES_PX = (8, 16, 32)              # of YOLOv8's three grids; an input's side is a multiple of the last
BINS = 16                             # YOLOv8 gives the distance to each side of a box as a distribution over bins
RAW_CHANNELS = 4 * BINS + 1           # left, top, right, bottom, and the score; x and y of each point may follow
SCORE = 4 * BINS                      # the channel of the score


class Faces(NamedTuple):
    """The faces of a canvas, best first.

    boxes: (n, 4) float32 x1 y1 x2 y2, and points: (n, 5, 2) float32 x y of left eye, right eye, nose, mouth corners, in
    canvas pixels; the points are NaN if the network finds none. scores: (n,) float32.
    """

    boxes: np.ndarray
    scores: np.ndarray
    points: np.ndarray


class FaceRules(NamedTuple):
    """Which faces of a detector's output count.

    min_score: lower scores are dropped. nms_iou: of two boxes that overlap more, the one with the lower score is
    dropped. max_detections: the most faces of a canvas.
    """

    min_score: float
    nms_iou: float
    max_detections: int


@cache
def anchors(side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells of all three grids over a square input, in the order of the network's output.

    Returns their centres (cells, 2) in units of their stride, and their strides (cells,) in pixels; both float32.
    """
    centres, strides = [], []
    for stride in STRIDES_PX:
        cells = side_px // stride
        y, x = np.mgrid[:cells, :cells]
        centres.append(np.stack([x.ravel(), y.ravel()], 1) + 0.5)
        strides.append(np.full(cells * cells, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def decode_faces(raw: np.ndarray, side_px: int, rules: FaceRules) -> Faces:
    """The faces of one image. Boxes and points may lie beyond the input.

    raw: (65, cells) float32, the network's output: 4 × 16 logits of distances in strides, and the score's logit. Ten
    more channels are x and y of five points, in half strides from the middle of the cell.
    """
    likely = np.flatnonzero(raw[SCORE] > -20.0)      # the others would overflow exp, and score less than any threshold
    scores = 1 / (1 + np.exp(-raw[SCORE, likely]))
    found, scores = likely[scores >= rules.min_score], scores[scores >= rules.min_score]
    centres, strides = anchors(side_px)
    logits = raw[:SCORE, found].reshape(4, BINS, len(found))
    weights = np.exp(logits - logits.max(1, keepdims=True))
    distances = (weights * np.arange(BINS, dtype=np.float32)[:, None]).sum(1) / weights.sum(1)      # (4, n), in strides
    centre, stride = centres[found], strides[found][:, None]
    boxes = np.concatenate([centre - distances[:2].T, centre + distances[2:].T], 1) * stride
    kept = nms(boxes, scores, rules.nms_iou)[: rules.max_detections]
    if len(raw) == RAW_CHANNELS:
        return Faces(boxes[kept], scores[kept], no_points(len(kept)))
    shifts = raw[RAW_CHANNELS:, found[kept]].T.reshape(-1, FIVE, 2)
    points = (2 * shifts + (centre[kept] - 0.5)[:, None]) * stride[kept][:, None]
    return Faces(boxes[kept], scores[kept], points)


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Indices of the boxes that stay, best score first: of two that overlap by more than `iou` the better stays.

    boxes: (n, 4) float32 x1 y1 x2 y2. scores: (n,) float32. Of equal scores the earlier box is the better one, as in
    torchvision's nms, whose results these are.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), bool)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        rest = slice(i + 1, None)
        width = np.maximum(np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]), 0)
        height = np.maximum(np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]), 0)
        shared = width * height
        with np.errstate(invalid="ignore", divide="ignore"):      # two boxes without area: nan, which is not above iou
            overlap = shared / (areas[i] + areas[rest] - shared)
            alive[rest] &= ~(overlap.astype(np.float64) > iou)      # torchvision compares in float64 as well
    return order[kept]
