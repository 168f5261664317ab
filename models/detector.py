"""The face detector: boxes and scores on square canvases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from models.boxes import STRIDES_PX, Cells, decode_faces, least_logit
from models.engines.engine import Network, Runtime, open_network
from models.padded_batches import PaddedBatches
from models.store import StoredModel

STRIDE_PX = STRIDES_PX[-1]            # of the coarsest grid; the input's side must be a multiple


@runtime_checkable
class ChoosingNetwork(Protocol):
    """A detector's network that gives only the cells that may be faces."""

    def cells_above(self, batch: np.ndarray, least_logit: float) -> Sequence[Cells]:
        """The cells of every canvas whose score's logit is above least_logit."""


class FaceDetector:
    """Find faces on square canvases; a canvas gives the same faces in every batch.

    network: (b, S, S, 3) uint8 RGB to the raw output (b, 65, cells) that `boxes.decode_faces` takes. Where it is a
    `ChoosingNetwork`, it is asked for likely cells only.
    """

    def __init__(
        self, network: Network, *, min_score: float, nms_iou: float, batch_size: int, max_detections: int
    ) -> None:
        self._min_score = min_score
        self._nms_iou = nms_iou
        self._max_detections = max_detections
        self._batches = PaddedBatches(_likely_cells(network, min_score), batch_size)

    def __call__(self, canvases: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes (n, 4) float32 x1 y1 x2 y2 in canvas pixels and scores (n,) float32 for every canvas.

        canvases: (b, S, S, 3) uint8 RGB, S a multiple of 32, else ValueError. The best score comes first. A box may
        reach a little beyond the canvas.
        """
        if canvases.ndim != 4 or canvases.shape[1] != canvases.shape[2] or canvases.shape[1] % STRIDE_PX \
                or canvases.shape[3] != 3 or canvases.dtype != np.uint8:
            raise ValueError(
                f"canvases must be (b, S, S, 3) uint8 with S a multiple of {STRIDE_PX}, "
                f"got {canvases.shape} {canvases.dtype}"
            )
        return [
            decode_faces(
                cells.raw, canvases.shape[1], min_score=self._min_score, nms_iou=self._nms_iou,
                max_detections=self._max_detections, numbers=cells.numbers,
            )
            for batch in self._batches.each(canvases)
            for cells in batch
        ]


def _likely_cells(network: Network, min_score: float) -> Callable[[np.ndarray], Sequence[Cells]]:
    """From canvases to the cells of each that may score min_score: all of them, unless the network can choose."""
    choosing: object = network
    if isinstance(choosing, ChoosingNetwork):
        return partial(choosing.cells_above, least_logit=least_logit(min_score))
    return lambda batch: [Cells(raw) for raw in network(batch)]


def load_detector(
    model: StoredModel,
    runtime: Runtime,
    *,
    input_sides_px: Sequence[int],
    min_score: float,
    nms_iou: float,
    batch_size: int,
    max_detections: int,
) -> FaceDetector:
    """The detector ready to call.

    input_sides_px: the sides of the canvases it will get. min_score: lower scores are dropped. nms_iou: of two boxes
    that overlap more, the one with the lower score is dropped. max_detections: the most faces of a canvas.
    Raises WeightsError.
    """
    network = open_network(model, runtime, [(batch_size, side, side, 3) for side in input_sides_px])
    return FaceDetector(
        network, min_score=min_score, nms_iou=nms_iou, batch_size=batch_size, max_detections=max_detections
    )
