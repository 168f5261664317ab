"""The face detector: YOLOv8 with one class.

Only the network is ultralytics'. Its predictor is not used: the letterbox there depends on the batch.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torchvision.ops import box_convert, nms

from models.device import to_device, torch_device
from models.padded_batches import PaddedBatches
from models.store import StoredModel, WeightCard, WeightsError, own_folder

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

NETWORKS = ("yolov8n", "yolov8s", "yolov8m")
STRIDE_PX = 32                        # of the coarsest grid; the input's side must be a multiple

ULTRALYTICS_ENV = {
    "YOLO_OFFLINE": "true",           # no connection to its servers and no telemetry
    "YOLO_AUTOINSTALL": "false",      # no pip
    "YOLO_VERBOSE": "false",
}


def import_ultralytics() -> None:
    """Import ultralytics offline and quiet. Call this before every import from it: it reads its environment only once.

    Its settings file goes to the folder for temporary files, not to the user's home.
    """
    os.environ.update(ULTRALYTICS_ENV)
    if "YOLO_CONFIG_DIR" not in os.environ:
        settings = own_folder(Path(tempfile.gettempdir()) / f"facelake-{os.getuid()}")
        os.environ["YOLO_CONFIG_DIR"] = str(settings)
    # If it is unset, the import sets it to 1, also for processes that are started later.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    import ultralytics  # noqa: F401

    logging.getLogger("ultralytics").setLevel(logging.WARNING)


def build_network(network: str) -> DetectionModel:
    """An untrained one-class network in training mode. network: one of `NETWORKS`, else WeightsError."""
    if network not in NETWORKS:
        raise WeightsError(f"detector network must be one of {', '.join(NETWORKS)}, got {network!r}")
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    return cast("DetectionModel", cast(Any, DetectionModel)(f"{network}.yaml", nc=1, verbose=False))


def load_network(network: str, tensors: Mapping[str, torch.Tensor]) -> DetectionModel:
    """The network with these tensors in it. Raises WeightsError when a name or shape differs."""
    model = build_network(network)
    expected = network_tensors(model)
    wrong = sorted(
        name for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise WeightsError(f"these are not the tensors of a one-class {network}: {len(wrong)} differ, first {wrong[0]}")
    model.load_state_dict(dict(tensors), strict=False)      # not strict: network_tensors leaves out the counters
    return model


def network_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a network, without the counters of its batch norms, which only training reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


class FaceDetector:
    """Find faces on square canvases; a canvas gives the same faces in every batch."""

    def __init__(
        self,
        model: DetectionModel,
        *,
        device: torch.device,
        min_score: float,
        nms_iou: float,
        batch_size: int,
        max_detections: int,
    ) -> None:
        self._device = device
        self._min_score = min_score
        self._nms_iou = nms_iou
        self._max_detections = max_detections
        self._model = to_device(cast(Any, model.eval()).fuse(verbose=False), device)
        self._run = PaddedBatches(self._forward, batch_size)

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
        if not len(canvases):
            return []
        return [self._faces(prediction) for prediction in self._run(canvases)]

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(b, S, S, 3) uint8 to (b, 5, cells): centre x, y, width, height in pixels, score."""
        pixels = batch.to(self._device).permute(0, 3, 1, 2).float().div_(255)      # NHWC: this is channels_last
        predictions: torch.Tensor = self._model(pixels)[0]      # the second are the raw heads
        return predictions

    def _faces(self, prediction: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        prediction = prediction[:, prediction[4] >= self._min_score]
        boxes, scores = box_convert(prediction[:4].T, "cxcywh", "xyxy"), prediction[4]
        kept = nms(boxes, scores, self._nms_iou)[: self._max_detections]
        return boxes[kept].numpy(), scores[kept].numpy()


def load_detector(
    model: StoredModel,
    *,
    device: str,
    min_score: float,
    nms_iou: float,
    batch_size: int,
    max_detections: int,
) -> FaceDetector:
    """The detector ready to call.

    device: auto, cpu or cuda. min_score: lower scores are dropped. nms_iou: of two boxes that overlap more, the one
    with the lower score is dropped. max_detections: the most faces of a canvas. Raises WeightsError.
    """
    return FaceDetector(
        load_network(detector_network(model.card), model.tensors()), device=torch_device(device),
        min_score=min_score, nms_iou=nms_iou, batch_size=batch_size, max_detections=max_detections,
    )


def detector_network(card: WeightCard) -> str:
    """The name of a detector's network. Raises WeightsError when the card's input is not what `FaceDetector` gives."""
    preprocessing = card.preprocessing
    if (preprocessing["mean"], preprocessing["std"], preprocessing["colour_order"]) != ([0] * 3, [255] * 3, "RGB"):
        raise WeightsError(f"detector {card.name}: a detector takes RGB / 255, its card says {preprocessing}")
    return str(card.architecture["network"])
