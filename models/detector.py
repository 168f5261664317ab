"""The face detector: boxes, scores and perhaps five points of each face, on square canvases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from models.boxes import STRIDES_PX, FaceRules, Faces, decode_faces
from models.engines.engine import Network, Runtime, open_network
from models.padded_batches import PaddedBatches
from models.store import StoredModel
from pipeline.geometry import no_points

STRIDE_PX = STRIDES_PX[-1]            # of the coarsest grid; the input's side must be a multiple
NO_SIZES: Mapping[int, int] = MappingProxyType({})


@runtime_checkable
class FaceNetwork(Protocol):
    """A detector's network that chooses the faces where it runs."""

    def faces(self, batch: Any, rules: FaceRules) -> list[Faces]:
        """The faces of every canvas, as `boxes.decode_faces` gives them."""


class FaceDetector:
    """Find faces on square canvases; a canvas gives the same faces in every batch.

    network: (b, S, S, 3) uint8 RGB to the raw output (b, 65 or 75, cells) that `boxes.decode_faces` takes; or a
    `FaceNetwork`. batch_sizes: canvases of a batch, by their side S, a multiple of 32. few_sizes: the same for `few`.
    points: whether the points count; if not they are NaN, whatever the network finds.
    """

    def __init__(
        self, network: Network, *, min_score: float, nms_iou: float, batch_sizes: Mapping[int, int],
        max_detections: int, few_sizes: Mapping[int, int] = NO_SIZES, points: bool = True,
    ) -> None:
        sides = sorted({*batch_sizes, *few_sizes})
        if any(side % STRIDE_PX for side in sides):
            raise ValueError(f"the sides of canvases must be multiples of {STRIDE_PX}, got {sides}")
        self._points = points
        find = _finding(network, FaceRules(min_score, nms_iou, max_detections))
        self._batches, self._few_batches = (
            {side: PaddedBatches(find, size) for side, size in sizes.items()} for sizes in (batch_sizes, few_sizes)
        )

    def __call__(self, canvases: Any) -> list[Faces]:
        """The faces of every canvas. A box may reach a little beyond the canvas.

        canvases: (b, S, S, 3) uint8 RGB, S one of `batch_sizes`, else ValueError; an array, or a tensor in the memory
        of the network's device.
        """
        return self._faces(canvases, self._batches)

    def few(self, canvases: Any) -> list[Faces]:
        """The same for canvases of which there are few, in the batches of `few_sizes`."""
        return self._faces(canvases, self._few_batches)

    def _faces(self, canvases: Any, batches: Mapping[int, PaddedBatches[list[Faces]]]) -> list[Faces]:
        if canvases.ndim != 4 or canvases.shape[1] != canvases.shape[2] or canvases.shape[1] not in batches \
                or canvases.shape[3] != 3 or str(canvases.dtype) not in ("uint8", "torch.uint8"):
            raise ValueError(
                f"canvases must be (b, S, S, 3) uint8 with S one of {sorted(batches)}, "
                f"got {tuple(canvases.shape)} {canvases.dtype}"
            )
        found = [faces for batch in batches[canvases.shape[1]].each(canvases) for faces in batch]
        return found if self._points else [faces._replace(points=no_points(len(faces.scores))) for faces in found]


def _finding(network: Network, rules: FaceRules) -> Callable[[Any], list[Faces]]:
    """From canvases to the faces of each."""
    choosing: object = network
    if isinstance(choosing, FaceNetwork):
        return partial(choosing.faces, rules=rules)
    return lambda canvases: [decode_faces(raw, canvases.shape[1], rules) for raw in network(canvases)]


def load_detector(
    model: StoredModel,
    runtime: Runtime,
    *,
    batch_sizes: Mapping[int, int],
    min_score: float,
    nms_iou: float,
    max_detections: int,
    few_sizes: Mapping[int, int] = NO_SIZES,
) -> FaceDetector:
    """The detector ready to call.

    batch_sizes: canvases of a batch, by the side of the canvases; the first side is the most frequent one.
    few_sizes: the same for `FaceDetector.few`. min_score: lower scores are dropped. nms_iou: of two boxes that overlap
    more, the one with the lower score is dropped. max_detections: the most faces of a canvas. Raises WeightsError.
    """
    shapes = [(size, side, side, 3) for sizes in (batch_sizes, few_sizes) for side, size in sizes.items()]
    network = open_network(model, runtime, list(dict.fromkeys(shapes)))
    return FaceDetector(
        network, min_score=min_score, nms_iou=nms_iou, batch_sizes=batch_sizes, max_detections=max_detections,
        few_sizes=few_sizes, points="points" in model.card.architecture,
    )
