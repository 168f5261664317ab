"""The notebook's way with the shipped models: torch, image by image, then face by face. `jobs.bench all` runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.bench.measurement import Measure, Measurement, serve
from jobs.extract.stages import alignment_template
from jobs.options import DEFAULT_MODELS
from models.embedder import Embedder, load_embedder
from models.engines.engine import Runtime
from models.keypointer import Keypointer, load_keypointer
from models.store import DEFAULT_WEIGHTS_DIR, StoredModel, read_model
from pipeline.geometry import chip_square, scale_shift, transform
from pipeline.settings import RowSettings
from pipeline.stages.align import align_chip

NAME = "loop: ultralytics' predict, then face by face"


class Loop:
    """The three shipped networks, each called for one image or one face."""

    def __init__(self, models: dict[str, StoredModel], device: str) -> None:
        runtime = Runtime(device, engine="torch", precision="float32")
        self._device, self._settings = device, RowSettings()
        self._yolo = yolo(models["detector"])
        self._locate_eyes: Keypointer = load_keypointer(models["keypointer"], runtime, batch_size=1)
        self._embed: Embedder = load_embedder(models["embedder"], runtime, batch_size=1)
        self._template = alignment_template(models["embedder"].card)

    def __call__(self, path: Path) -> int:
        """Find and embed the faces of a photo; returns how many."""
        photo = cv2.imread(str(path))
        if photo is None:
            return 0
        found = self._yolo.predict(
            photo, imgsz=self._settings.detect_px, conf=self._settings.min_score, iou=self._settings.nms_iou,
            device=self._device, verbose=False,
        )[0]
        pixels = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
        boxes = found.boxes.xyxy.cpu().numpy()
        for box_xyxy in boxes:
            self.vector(pixels, box_xyxy)
        return len(boxes)

    def vector(self, pixels: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
        """The embedding of one face."""
        left, top, side = chip_square(box_xyxy)
        x, y = max(left, 0), max(top, 0)
        chip = pixels[y : top + side, x : left + side]
        square = cv2.copyMakeBorder(
            chip, y - top, side - (y - top) - len(chip), x - left, side - (x - left) - chip.shape[1],
            cv2.BORDER_REPLICATE,
        )
        to_image = scale_shift((1.0, 1.0), (left, top))
        eyes = transform(to_image, self._locate_eyes([square])[0])
        crop = align_chip(square, to_image, box_xyxy, eyes, self._template).crop
        vector = self._embed(crop[None])[0]
        unit: np.ndarray = vector / np.linalg.norm(vector)
        return unit


def yolo(detector: StoredModel) -> Any:
    """Our detector as ultralytics' own class for notebooks."""
    from models.networks.yolo import detector_network, import_ultralytics, load_network, without_points

    import_ultralytics()
    from ultralytics import YOLO

    network = detector_network(detector.card)
    model: Any = YOLO(f"{network}.yaml", task="detect")
    model.model = load_network(network, without_points(detector.tensors())).eval()
    return model


def prepare(photos: Sequence[Path], device: str) -> Measure:
    """Load the models and warm up."""
    loop = Loop({role: read_model(DEFAULT_WEIGHTS_DIR, role, name) for role, name in DEFAULT_MODELS.items()}, device)
    loop(photos[0])

    def measure() -> list[Measurement]:
        started = time.perf_counter()
        faces = sum(map(loop, photos))
        return [Measurement(NAME, len(photos) / (time.perf_counter() - started), notes={"faces": faces})]

    return measure


if __name__ == "__main__":
    folder, chosen_device = sys.argv[1:]
    serve(lambda: prepare(sorted(Path(folder).iterdir()), chosen_device))
