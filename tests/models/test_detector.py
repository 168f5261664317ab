from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.boxes import BINS, RAW_CHANNELS, anchors
from models.detector import FaceDetector, load_detector
from models.engines.engine import Runtime
from models.metrics import box_iou
from models.networks.yolo import build_network, load_network, network_tensors
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model, save_model
from pipeline.stages.operations import letterbox

REFERENCE = Runtime(engine="torch", precision="float32")
SETTINGS = {"min_score": 0.5, "nms_iou": 0.5, "max_detections": 10}


class FakeNetwork:
    """The same faces on every canvas of 32 px: rows of centre x, centre y, width, height, score."""

    def __init__(self, rows: list[list[float]]) -> None:
        centres, strides = anchors(32)
        self._raw = np.zeros((RAW_CHANNELS, len(strides)), np.float32)
        self._raw[-1] = -20.0
        for x, y, width, height, score in rows:
            low, high = np.array([x - width / 2, y - height / 2]), np.array([x + width / 2, y + height / 2])
            inside = ((centres * strides[:, None] >= low) & (centres * strides[:, None] <= high)).all(1)
            cell = np.flatnonzero(inside & (self._raw[-1] == -20.0))[0]
            distances = np.concatenate([centres[cell] - low / strides[cell], high / strides[cell] - centres[cell]])
            for side, distance in enumerate(distances):      # between two bins, weighted so that the mean is right
                first = side * BINS + int(distance)
                self._raw[side * BINS : (side + 1) * BINS, cell] = -100.0
                self._raw[first : first + 2, cell] = np.log(np.maximum([1 - distance % 1, distance % 1], 1e-30))
            self._raw[-1, cell] = np.log(score / (1 - score))
        self.seen: list[np.ndarray] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch)
        return np.broadcast_to(self._raw, (len(batch), *self._raw.shape))


def canvases(count: int, side: int = 32) -> np.ndarray:
    made = np.full((count, side, side, 3), 51, np.uint8)
    made.flags.writeable = False
    return made


def fake_detector(rows: list[list[float]], **changed: float) -> FaceDetector:
    return FaceDetector(FakeNetwork(rows), batch_sizes={32: 2}, **{**SETTINGS, **changed})


@pytest.mark.parametrize(
    ("rows", "changed", "boxes", "scores"),
    [
        ([], {}, [], []),
        ([[10, 10, 4, 8, 0.9]], {}, [[8, 6, 12, 14]], [0.9]),
        ([[10, 10, 4, 8, 0.5], [20, 20, 2, 2, 0.49]], {}, [[8, 6, 12, 14]], [0.5]),
        ([[10, 10, 4, 4, 0.6], [20, 20, 4, 4, 0.9]], {}, [[18, 18, 22, 22], [8, 8, 12, 12]], [0.9, 0.6]),
        # the second box is shifted by a quarter of its width: IoU 0.6
        ([[10, 10, 8, 8, 0.9], [12, 10, 8, 8, 0.8]], {}, [[6, 6, 14, 14]], [0.9]),
        ([[10, 10, 8, 8, 0.9], [12, 10, 8, 8, 0.8]], {"nms_iou": 0.7}, [[6, 6, 14, 14], [8, 6, 16, 14]], [0.9, 0.8]),
        ([[10, 10, 4, 4, 0.6], [20, 20, 4, 4, 0.9]], {"max_detections": 1}, [[18, 18, 22, 22]], [0.9]),
    ],
    ids=["none", "one", "weak", "best first", "overlap", "overlap allowed", "at most"],
)
def test_predictions_become_faces(rows, changed, boxes, scores) -> None:
    found = fake_detector(rows, **changed)(canvases(3))
    assert len(found) == 3
    for found_boxes, found_scores, points in found:
        assert points.shape == (len(found_boxes), 5, 2) and np.isnan(points).all()
        assert found_boxes.shape == (len(boxes), 4)
        assert found_boxes.dtype == found_scores.dtype == np.float32
        assert np.allclose(found_boxes, np.reshape(boxes, (-1, 4)), atol=1e-4)
        assert found_scores.tolist() == pytest.approx(scores)


def test_no_canvases_give_no_faces() -> None:
    assert fake_detector([[10, 10, 4, 8, 0.9]])(canvases(0)) == []


def test_the_network_sees_the_canvases_in_batches_of_one_shape() -> None:
    network = FakeNetwork([])
    canvas = canvases(3).copy()
    canvas[..., 2] = 255
    detect = FaceDetector(network, batch_sizes={32: 2, 64: 3}, **SETTINGS)
    detect(canvas)
    assert len(detect(canvases(4, side=64))) == 4
    assert [batch.shape for batch in network.seen] == [(2, 32, 32, 3)] * 2 + [(3, 64, 64, 3)] * 2
    assert network.seen[0][0, 5, 5].tolist() == [51, 51, 255]
    assert network.seen[1][1].max() == 0        # the padding


def test_few_canvases_go_in_batches_of_their_own() -> None:
    network = FakeNetwork([[10, 10, 4, 8, 0.9]])
    detect = FaceDetector(network, batch_sizes={32: 4}, few_sizes={32: 2}, **SETTINGS)
    assert [len(faces.scores) for faces in detect.few(canvases(3))] == [1, 1, 1]
    assert len(detect(canvases(3))) == 3
    assert [len(batch) for batch in network.seen] == [2, 2, 4]
    with pytest.raises(ValueError, match=re.escape("S one of []")):
        fake_detector([]).few(canvases(1))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 32, 64, 3), np.uint8), np.zeros((1, 40, 40, 3), np.uint8), np.zeros((32, 32, 3), np.uint8),
     np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 32, 32, 4), np.uint8)],
    ids=["not square", "another side", "no batch", "dtype", "channels"],
)
def test_wrong_canvases_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=re.escape("S one of [32]")):
        fake_detector([])(wrong)


def test_sides_must_be_multiples_of_32() -> None:
    with pytest.raises(ValueError, match=re.escape("multiples of 32, got [32, 40]")):
        FaceDetector(FakeNetwork([]), batch_sizes={40: 2, 32: 2}, **SETTINGS)


# ---- the shipped detector ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """The two photos that come with ultralytics: four people at a bus, Zidane and Ancelotti."""
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "assets"
    return [cv2.imread(str(folder / name), cv2.IMREAD_COLOR_RGB) for name in ("bus.jpg", "zidane.jpg")]


def shipped(batch_size: int, side: int = 320) -> FaceDetector:
    model = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n")
    return load_detector(model, REFERENCE, batch_sizes={side: batch_size}, **SETTINGS)


def test_the_shipped_detector_finds_the_faces_of_a_photo(photos: list[np.ndarray]) -> None:
    canvas, canvas_to_image = letterbox(photos[1], 640)
    [(boxes, scores, _)] = shipped(1, side=640)(canvas[None])
    assert canvas_to_image[0, 0] == 2.0         # 1280 px wide
    image_boxes = boxes * 2 + canvas_to_image[:, 2].tolist() * 2
    by_eye = np.array([[535, 225, 668, 450], [904, 80, 1060, 280]])
    assert len(scores) == 2
    assert (box_iou(by_eye, image_boxes).max(axis=1) > 0.5).all()


def test_a_canvas_has_the_same_faces_in_any_batch(photos: list[np.ndarray]) -> None:
    views = [letterbox(photo[top:, left:], 320)[0] for photo in photos for top in (0, 40) for left in (0, 30, 60, 90)]
    stack = np.stack(views)
    stack.flags.writeable = False
    together = shipped(16)
    found = together(stack)
    assert sum(len(faces.scores) for faces in found) >= 16

    order = np.random.default_rng(0).permutation(16)
    for batch in (order, [3, 4]):             # the same batch shape: bit-equal
        for i, (boxes, scores, _) in zip(batch, together(stack[batch]), strict=True):
            assert np.array_equal(boxes, found[i][0])
            assert np.array_equal(scores, found[i][1])

    for (boxes, scores, _), (boxes_alone, scores_alone, _) in zip(found, shipped(1)(stack), strict=True):
        assert len(scores) == len(scores_alone)
        assert np.diag(box_iou(boxes, boxes_alone)).min(initial=1.0) >= 0.99
        assert np.abs(scores - scores_alone).max(initial=0.0) < 1e-3


# ---- loading -------------------------------------------------------------------------------------------------------


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(WeightsError, match="one of yolov8n, yolov8s, yolov8m, got 'yolov8x'"):
        build_network("yolov8x")


@pytest.mark.parametrize("network", ["yolov8n", "yolov8s"])
def test_tensors_of_another_network_are_refused(network: str) -> None:
    tensors = network_tensors(build_network(network))
    assert len(tensors) == 355 - 57             # without the 57 counters of the batch norms
    assert network_tensors(load_network(network, tensors)).keys() == tensors.keys()
    name = "model.22.cv3.0.2.weight"
    of_two_classes = torch.zeros(2, *tensors[name].shape[1:])
    for wrong in ({}, {**tensors, name: of_two_classes}, {**tensors, "extra": torch.ones(1)}):
        with pytest.raises(WeightsError, match="not the tensors of a one-class"):
            load_network(network, wrong)


def test_a_card_with_another_preprocessing_is_refused(tmp_path: Path) -> None:
    fields = {
        "name": "odd", "role": "detector", "architecture": {"network": "yolov8n"},
        "preprocessing": {"input_px": 640, "mean": [104, 117, 123], "std": [1, 1, 1], "colour_order": "BGR"},
        "licence": "", "commercial_use": False, "started_from": "", "data": [], "metrics": {}, "command": "",
    }
    save_model(tmp_path, fields, {})
    with pytest.raises(WeightsError, match="takes RGB / 255"):
        model = read_model(tmp_path, "detector", "odd")
        load_detector(model, REFERENCE, batch_sizes={320: 1}, **SETTINGS)


def test_ultralytics_is_offline_and_quiet_and_writes_nothing_to_the_home(tmp_path: Path) -> None:
    code = """
import os, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("went online")
socket.getaddrinfo = socket.socket.connect = refuse
import models.networks.yolo as yolo
assert "ultralytics" not in sys.modules
threads = yolo.torch.get_num_threads()
yolo.build_network("yolov8n")
from ultralytics.utils import AUTOINSTALL, ONLINE
from ultralytics.utils.events import events
assert not AUTOINSTALL and not ONLINE and not events.enabled
assert yolo.torch.get_num_threads() == threads == int(os.environ["OMP_NUM_THREADS"])
"""
    home = tmp_path / "home"
    home.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": str(home), "PATH": "", "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
