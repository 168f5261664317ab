from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.evaluate.data import DataError
from jobs.train.point_canvases import Canvases, PointFaces, agreed_faces, annotated_faces
from jobs.train.points import Batches, learning_branch, main, measure, seen_windows
from models.networks.face_points import Windows
from models.networks.yolo import RawDetector, load_network, without_points
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model
from models.training import TrainingError
from tests.support.evaluation import encoded, zidane

FIVE = np.array([[118.0, 87], [172, 89], [147, 124], [123, 154], [160, 155]])      # by eye, in the crop below


def one_face(count: int = 1) -> PointFaces:
    """The face of a photo, 156 by 200 px in a crop of 240 px."""
    crop = np.ascontiguousarray(zidane()[80:320, 850:1090])
    return PointFaces([encoded(crop)] * count, np.tile([54.0, 0, 210, 200], (count, 1)), np.tile(FIVE, (count, 1, 1)),
                      np.ones((count, 5)), np.ones(count), np.zeros(count, bool))


def test_without_a_face_there_is_no_canvas() -> None:
    with pytest.raises(TrainingError, match="no face to train on"):
        Canvases(one_face().take(np.zeros(0, int)), 64, 1)


def test_a_canvas_is_a_function_of_its_number_and_knows_its_faces() -> None:
    canvases = Canvases(one_face(3), 160, seed=1)
    for number in range(6):
        (pixels, boxes, points, weights), again = canvases(number), canvases(number)
        assert pixels.shape == (160, 160, 3) and np.array_equal(pixels, again[0]) and np.array_equal(points, again[2])
        assert points.shape == (len(boxes), 5, 2) and weights.shape == (len(boxes), 5)
        # The same similarity moves box and points: their size over the box's stays.
        sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
        assert np.allclose(np.linalg.norm(points[:, 0] - points[:, 1], axis=1) / sides, np.hypot(54, 2) / 200)
        # Clockwise in the picture are left eye, right eye, right and left mouth corner, also of a mirrored face.
        right, down = points[:, 1] - points[:, 0], points[:, 3] - points[:, 0]
        assert (right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0] > 0).all()


def labels(folder: Path, points: list[list[float]], differences: list[list[float]]) -> Path:
    count = len(points)
    folder.mkdir()
    pq.write_table(pa.table({
        "source": ["pins"] * count, "image": [encoded(np.full((96, 96, 3), 90, np.uint8))] * count,
        "box": [[24.0, 24, 72, 72]] * count, "points": points, "differences": differences,
        "whole": [False] * (count - 1) + [True], "held_out": [False] * count,
    }), folder / "labels-00.parquet")
    return folder


def teacher(faces):
    """Five points as a level face has them in the middle of a kept face, and the score of a sure detector."""
    five = np.array([[80.0, 80], [112, 80], [96, 100], [84, 116], [108, 116]])
    return np.tile(five, (len(faces), 1, 1)), np.zeros((len(faces), 4)), np.full(len(faces), 0.9)


def test_eyes_are_those_of_the_labels_and_the_rest_is_the_teachers(tmp_path: Path) -> None:
    level = [*[40.0, 40.0] * 6, *[56.0, 40.0] * 6]
    elsewhere = [*[26.0, 60.0] * 6, *[42.0, 60.0] * 6]
    folder = labels(tmp_path / "labels", [level, elsewhere, level], [[0.0, 0.03], [0.0, 0.0], [0.0, 0.0]])
    for _ in range(2):                                                # the second time from the cache
        faces = agreed_faces(folder, teacher, tmp_path / "cache/said.npy")
        assert len(faces.images) == 2                                 # people's points are read elsewhere
        assert np.allclose(faces.points[0], [[40, 40], [56, 40], [48, 50], [42, 58], [54, 58]])
        assert np.allclose(faces.weights[0], [1, 0.5, 1, 1, 1])
        assert np.allclose(faces.weights[1], [1, 1, 0, 0, 0])         # the teacher saw its eyes elsewhere


def test_peoples_points_are_eyes_nose_and_mouth(tmp_path: Path) -> None:
    all68 = np.zeros((68, 2))
    all68[:, 0], all68[:, 1] = np.arange(68), np.arange(68) % 7
    unknown = np.full(136, np.nan).tolist()
    image = encoded(np.zeros((96, 96, 3), np.uint8))
    known = all68.ravel().tolist()
    pq.write_table(pa.table({"image": [image] * 2, "points": [unknown, known]}), tmp_path / "a.parquet")
    faces = annotated_faces(tmp_path / "a.parquet")
    assert faces.points[:, :, 0].tolist() == [[38.5, 44.5, 30, 48, 54]] and faces.weights.tolist() == [[1.0] * 5]
    pq.write_table(pa.table({"image": [image], "points": [unknown]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no face with 68 points"):
        annotated_faces(tmp_path / "b.parquet")


def test_the_shipped_detector_sees_windows_that_a_branch_learns_from() -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n")
    detector = RawDetector(load_network("yolov8n", without_points(model.tensors())).eval())
    canvases = Canvases(one_face(), 640, seed=111)                    # 2, 4 and 8 cells a side
    with pytest.raises(TrainingError, match="too few faces in the canvases"):
        seen_windows(detector, canvases, range(1, 2), 640, "float32")
    windows = seen_windows(detector, canvases, range(3), 640, "float32")
    assert [of.features.shape[1:] for of in windows] == [(64, 7, 7), (128, 7, 7), (256, 7, 7)]
    inputs, wanted = Batches(windows, 4, seed=1)(0)
    assert len(inputs) == 4 and [len(of) for of in wanted] == [4] * 4
    branch = {name: of for name, of in model.tensors().items() if name not in without_points(model.tensors())}
    figures = measure(learning_branch("yolov8n", branch), windows)
    assert 0 < figures["eyes"] < 0.15 and 0 < figures["nose_and_mouth"] < 0.15


def test_a_start_without_points_is_refused() -> None:
    with pytest.raises(WeightsError, match="has no branch for five points that fits yolov8n"):
        learning_branch("yolov8n", {"model.22.cv4.0.0.conv.weight": torch.zeros(1)})


def test_grids_with_few_faces_are_drawn_too() -> None:
    def of(faces: int, channels: int) -> Windows:
        return Windows(torch.zeros(faces, channels, 7, 7), torch.zeros(faces, 5, 2), torch.ones(faces),
                       torch.zeros(faces, 3, 3), torch.zeros(faces, 5))

    batches = Batches([of(98, 1), of(1, 2), of(1, 3)], 2, seed=1)
    assert {batches(number)[0].shape[1] for number in range(40)} == {1, 2, 3}


def test_missing_labels_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start.pt"
    assert main(["--labels", str(tmp_path), "--start", str(start), "--out", str(tmp_path / "w")]) == 2
    assert f"{start} does not exist" in capsys.readouterr().err
