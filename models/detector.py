"""The face detector: YOLOv8 with one class, built by ultralytics and run by ourselves.

ultralytics' own predictor letterboxes by batch, reads files and talks; only its network is used here.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import box_convert, nms

from models.batches import PaddedBatches, torch_device
from models.store import WeightCard, WeightsError, load_tensors, own_folder, read_card

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

NETWORKS = ("yolov8n", "yolov8s", "yolov8m")
STRIDE_PX = 32                        # the coarsest of the three grids: the input's side must be a multiple

ULTRALYTICS_ENV = {
    "YOLO_OFFLINE": "true",           # no look-ups of its servers, hence no telemetry either
    "YOLO_AUTOINSTALL": "false",      # never runs pip
    "YOLO_VERBOSE": "false",
}


def import_ultralytics() -> None:
    """Set ultralytics' environment, which it reads once, when it is first imported; call before importing from it.

    Its settings file goes to the folder for temporary files instead of the user's home.
    """
    os.environ.update(ULTRALYTICS_ENV)
    if "YOLO_CONFIG_DIR" not in os.environ:
        settings = own_folder(Path(tempfile.gettempdir()) / f"facelake-{os.getuid()}")
        os.environ["YOLO_CONFIG_DIR"] = str(settings)
    # Left unset it becomes 1 on import, for every process started afterwards.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    import ultralytics  # noqa: F401

    logging.getLogger("ultralytics").setLevel(logging.WARNING)


def build_network(network: str) -> DetectionModel:
    """An untrained one-class network by name, one of `NETWORKS`, in training mode. Raises WeightsError."""
    if network not in NETWORKS:
        raise WeightsError(f"detector network must be one of {', '.join(NETWORKS)}, got {network!r}")
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(f"{network}.yaml", nc=1, verbose=False)


def load_network(network: str, tensors: Mapping[str, torch.Tensor]) -> DetectionModel:
    """The network with the given tensors, whose names and shapes must be its own. Raises WeightsError."""
    model = build_network(network)
    expected = network_tensors(model)
    wrong = sorted(
        name for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise WeightsError(f"these are not the tensors of a one-class {network}: {len(wrong)} differ, first {wrong[0]}")
    model.load_state_dict(dict(tensors), strict=False)      # not strict: the counters left out by network_tensors
    return model


def network_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that make up a network, without the counters of its batch norms, which only training reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


class FaceDetector:
    """Find faces on square canvases.

    The same canvas gives the same faces whatever else is in the batch.
    """

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
        # channels_last doubles convolution speed on CPUs (10 → 23 img/s at 640, batch 8, 2 cores).
        self._model = model.eval().fuse(verbose=False).to(device, memory_format=torch.channels_last)
        self._run = PaddedBatches(self._forward, batch_size)

    def __call__(self, canvases: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boxes (n, 4) float32 x1 y1 x2 y2 in canvas pixels and scores (n,) float32 for every canvas.

        canvases: (b, S, S, 3) uint8 RGB, S a multiple of 32. Sorted by descending score; boxes may reach a little
        beyond the canvas. Raises ValueError for another shape.
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
        pixels = batch.to(self._device).permute(0, 3, 1, 2).float().div_(255)      # NHWC bytes: already channels_last
        predictions, _raw_heads = self._model(pixels)
        return predictions

    def _faces(self, prediction: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        prediction = prediction[:, prediction[4] >= self._min_score]
        boxes, scores = box_convert(prediction[:4].T, "cxcywh", "xyxy"), prediction[4]
        kept = nms(boxes, scores, self._nms_iou)[: self._max_detections]
        return boxes[kept].numpy(), scores[kept].numpy()


def load_detector(
    weights_dir: Path,
    name: str,
    *,
    device: str,
    min_score: float,
    nms_iou: float,
    batch_size: int,
    max_detections: int,
) -> FaceDetector:
    """The detector `name` ready to run.

    device: "auto", "cpu" or "cuda"; min_score: faces below it are dropped; nms_iou: of two boxes that overlap more the
    weaker is dropped; max_detections: at most so many faces a canvas. Raises WeightsError.
    """
    card = read_card(weights_dir, "detector", name)
    return FaceDetector(
        load_network(detector_network(card), load_tensors(weights_dir, card)), device=torch_device(device),
        min_score=min_score, nms_iou=nms_iou, batch_size=batch_size, max_detections=max_detections,
    )


def detector_network(card: WeightCard) -> str:
    """The name of a detector's network. Raises WeightsError when its input is not what `FaceDetector` feeds."""
    preprocessing = card.preprocessing
    if (preprocessing["mean"], preprocessing["std"], preprocessing["colour_order"]) != ([0] * 3, [255] * 3, "RGB"):
        raise WeightsError(f"detector {card.name}: a detector takes RGB / 255, its card says {preprocessing}")
    return card.architecture["network"]
