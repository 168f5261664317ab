"""Shared by the tests of `jobs.evaluate`: tiny weights, encoded images, and an output of `jobs.extract`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.networks.eyes import build_keypointer
from models.networks.faces import build_embedder
from models.store import DEFAULT_WEIGHTS_DIR, save_model
from tests.support.photos import ZIDANE, read_photo


def card_fields(role: str, architecture: dict[str, Any], **preprocessing: Any) -> dict[str, Any]:
    return {
        "name": "tiny", "role": role, "architecture": architecture,
        "preprocessing": {"input_px": 112, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                          **preprocessing},
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {"a": 1},
        "command": "",
    }


def tiny_weights(folder: Path, seed: int = 0) -> Path:
    """A weights folder with the shipped detector, and an untrained keypointer and embedder `tiny`."""
    torch.manual_seed(seed)
    folder.mkdir()
    for file in DEFAULT_WEIGHTS_DIR.glob("detector-yolov8n.*"):
        shutil.copy(file, folder)
    eyes = {"network": "resnet18", "width": 8, "input_px": 64}
    save_model(folder, card_fields("keypointer", eyes, chip_fraction=0.75), build_keypointer(eyes).state_dict())
    embedder = {"network": "resnet18", "width": 8}
    save_model(folder, card_fields("embedder", embedder), build_embedder(embedder).state_dict())
    return folder


def encoded(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def zidane() -> np.ndarray:
    """A photo with two faces, BGR."""
    return read_photo(ZIDANE)


ZIDANE_BOXES = [[535.0, 225.0, 668.0, 450.0], [904.0, 80.0, 1060.0, 280.0]]     # drawn by hand


def face(uri: str, box: Sequence[float], **columns: Any) -> dict[str, Any]:
    """A row of `faces/`."""
    return {"uri": uri} | dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)) | columns


def write_output(folder: Path, uris: Sequence[str], faces: Sequence[Mapping[str, Any]]) -> Path:
    """Write an output with images of 100×100 px and the default settings."""
    images = {"uri": list(uris), "width": [100] * len(uris), "height": [100] * len(uris)}
    for name, table in (("images", pa.table(images)), ("faces", pa.Table.from_pylist(list(faces)))):
        (folder / name).mkdir(parents=True)
        pq.write_table(table, folder / f"{name}/part-0.parquet")
    (folder / "output.json").write_text(json.dumps({"settings": {"min_score": 0.35, "detect_px": 640}}))
    return folder
