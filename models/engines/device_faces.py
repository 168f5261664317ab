"""From the detector's raw output to boxes on a device, for all canvases of a batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from models.boxes import BINS, RAW_CHANNELS, SCORE, STRIDES_PX, FaceRules, Faces, anchors
from models.device import wait_for
from pipeline.geometry import FIVE

MOST_BOXES = 20_000       # that `nms` gets at once: it compares all pairs, and notes them in 50 MB


def chosen_faces(raw: Tensor, side_px: int, rules: FaceRules) -> tuple[Tensor, ...]:
    """The faces of a batch, as `boxes.decode_faces` gives them for each canvas, without its `max_detections`.

    raw: (b, 65 or 75, cells) float32, the network's output. Returns, ordered by canvas and best first: the canvases
    (n,), boxes (n, 4) float32 x1 y1 x2 y2 in pixels of the canvas, scores (n,) float32, and points (n, 5, 2) float32.
    """
    likely = raw[:, SCORE].sigmoid()
    wait_for(raw.device)      # `nonzero` and `nms` wait too, but keep a CPU busy meanwhile
    canvas, cell = (likely >= rules.min_score).nonzero(as_tuple=True)
    scores, found = likely[canvas, cell], raw[canvas, :, cell]
    boxes = _boxes(found[:, :SCORE], cell, side_px)
    # Boxes of different canvases are moved apart, so one call serves all. In float64 the shift rounds nothing.
    far = (canvas.double() * (side_px + 2 * BINS * STRIDES_PX[-1]))[:, None]
    apart, scores64 = boxes.double() + far, scores.double()
    kept = torch.cat([
        start + nms(apart[start:end], scores64[start:end], rules.nms_iou) for start, end in _groups(canvas, len(raw))
    ])
    kept = kept[canvas[kept].argsort(stable=True)]
    return canvas[kept], boxes[kept], scores[kept], _points(found[kept, RAW_CHANNELS:], cell[kept], side_px)


def _groups(canvas: Tensor, canvases: int) -> list[tuple[int, int]]:
    """Where groups of whole canvases start and end in their boxes, of at most `MOST_BOXES` if they are several."""
    if len(canvas) <= MOST_BOXES:
        return [(0, len(canvas))]
    starts = [0]
    ends = torch.bincount(canvas, minlength=canvases).cumsum(0).tolist()
    for before, end in pairwise([0, *ends]):
        if end - starts[-1] > MOST_BOXES and before > starts[-1]:
            starts.append(before)
    return list(pairwise([*starts, len(canvas)]))


def faces_by_canvas(found: Sequence[np.ndarray], canvases: int, max_detections: int) -> list[Faces]:
    """What `chosen_faces` returned, as arrays, for each of so many canvases: the best max_detections faces."""
    canvas, *parts = found
    starts = np.searchsorted(canvas, np.arange(canvases + 1))
    return [Faces(*(part[start:end][:max_detections] for part in parts)) for start, end in pairwise(starts)]


def _boxes(logits: Tensor, cell: Tensor, side_px: int) -> Tensor:
    """The boxes (n, 4) of cells, from 4 × 16 logits of distances (n, 64)."""
    centres, strides = (part[cell] for part in _anchors(side_px, logits.device))
    bins = torch.arange(BINS, dtype=torch.float32, device=logits.device)
    distances = (logits.view(-1, 4, BINS).softmax(2) * bins).sum(2)
    return torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], 1) * strides[:, None]


def _points(shifts: Tensor, cell: Tensor, side_px: int) -> Tensor:
    """The points (n, 5, 2) of cells, from their raw x and y (n, 10); NaN where there are none (n, 0)."""
    if not shifts.shape[1]:
        return shifts.new_full((len(shifts), FIVE, 2), math.nan)
    centres, strides = (part[cell] for part in _anchors(side_px, shifts.device))
    return (2 * shifts.view(-1, FIVE, 2) + (centres - 0.5)[:, None]) * strides[:, None, None]


@cache
def _anchors(side_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    centres, strides = anchors(side_px)
    return torch.from_numpy(centres).to(device), torch.from_numpy(strides).to(device)
