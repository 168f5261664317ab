from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from jobs import train_embedder
from jobs.train_embedder import (
    FIVE_POINT_TEMPLATE,
    Faces,
    class_means,
    five_point_matrix,
    jittered_matrix,
    join_vectors,
    load_teacher,
    student_crop,
    warp,
)
from models.embedder import build_embedder, load_embedder
from models.training import box_of_crop
from pipeline import geometry
from pipeline.geometry import AlignmentTemplate

# Five landmarks of an upright face in a 144×144 crop.
LANDMARKS = np.array([[54.0, 62], [90, 62], [72, 82], [58, 100], [86, 100]])
LANDMARKS.flags.writeable = False


def table(path: Path, values: list[int], people: list[str] | None = None) -> Path:
    """A Parquet file of plain grey crops."""
    images = [cv2.imencode(".png", np.full((144, 144, 3), value, np.uint8))[1].tobytes() for value in values]
    columns = {"image": images, "landmarks": [LANDMARKS.tolist()] * len(values)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | ({"identity": people} if people is not None else {})), path)
    return path


@pytest.mark.parametrize(
    ("scale", "turn_deg", "shift"),
    [(1.0, 0.0, (0, 0)), (2.5, 0.0, (30, -7)), (0.5, 40.0, (100, 3)), (1.0, -170.0, (0, 0))],
)
def test_five_points_find_the_similarity(scale: float, turn_deg: float, shift: tuple[float, float]) -> None:
    turn = np.radians(turn_deg)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = FIVE_POINT_TEMPLATE @ linear.T + shift
    matrix = five_point_matrix(moved)
    assert np.allclose(geometry.transform(matrix, moved), FIVE_POINT_TEMPLATE)


def test_five_points_never_mirror() -> None:
    matrix = five_point_matrix(FIVE_POINT_TEMPLATE * (-1, 1) + (112, 0))
    assert np.linalg.det(matrix[:, :2]) > 0


def test_jitter_scatters_around_the_align_stages_matrix() -> None:
    exact = geometry.align_matrix(box_of_crop(144), LANDMARKS[0], LANDMARKS[1], AlignmentTemplate())
    drawn = np.array([jittered_matrix(LANDMARKS, np.random.default_rng(seed)) for seed in range(400)])
    assert np.abs(drawn.mean(0) - exact)[:, :2].max() < 0.03
    assert np.abs(geometry.transform(drawn, LANDMARKS[None, :2]).mean(0)
                  - geometry.transform(exact, LANDMARKS[:2])).max() < 0.5
    scales = np.linalg.norm(drawn[:, :, 0], axis=1) / np.linalg.norm(exact[:, 0])
    assert 0.02 < scales.std() < 0.08


def test_warping_moves_pixels_as_points() -> None:
    image = np.zeros((144, 144, 3), np.uint8)
    cv2.circle(image, (90, 62), 3, (255, 255, 255), -1)
    matrix = geometry.align_matrix(box_of_crop(144), LANDMARKS[0], LANDMARKS[1], AlignmentTemplate())
    y, x = np.nonzero(warp(image, matrix)[..., 0] > 127)
    expected = geometry.transform(matrix, np.array([[90.5, 62.5]]))[0]
    assert np.abs(np.array([x.mean() + 0.5, y.mean() + 0.5]) - expected).max() < 0.3


def test_a_students_crop_follows_its_generator() -> None:
    image = np.random.default_rng(0).integers(0, 256, (144, 144, 3), np.uint8)
    image.flags.writeable = False
    crops = [student_crop(image, LANDMARKS, np.random.default_rng(seed)) for seed in (1, 2, 1)]
    assert {(c.shape, c.dtype) for c in crops} == {((112, 112, 3), np.dtype(np.uint8))}
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])


def test_faces_are_decoded_once_and_labelled_by_name(tmp_path: Path) -> None:
    named = table(tmp_path / "a.parquet", [10, 20, 30], ["zoe", "ann", "zoe"])
    unknown = table(tmp_path / "b.parquet", [40, 50, 60])
    for _ in range(2):      # the second time from the cache
        faces = Faces([(named, 1), (unknown, 2)], tmp_path / "cache.npy")
        assert faces.people.tolist() == [1, 0, 1, -1, -1]
        assert faces.images[:, 5, 5, 0].tolist() == [10, 20, 30, 40, 60]
        assert np.array_equal(faces.landmarks[3], LANDMARKS)
    with pytest.raises(ValueError, match="delete it"):
        Faces([(named, 1)], tmp_path / "cache.npy")


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        ([np.array([[0.6, 0.8]])], [[0.6, 0.8]]),
        ([np.array([[1.0, 0]]), np.array([[0.0, 1]])], np.array([[1, 0, 0, 0.5]]) / np.sqrt(1.25)),
    ],
)
def test_teachers_are_joined_the_first_counting_most(teachers, expected) -> None:
    assert np.allclose(join_vectors(teachers), expected)


def test_class_means() -> None:
    vectors = np.array([[1, 0], [0, 1], [5, 5], [0, 3]], np.float32)
    assert np.array_equal(class_means(vectors, np.array([1, 0, -1, 0])), [[0, 4], [1, 0]])


def test_other_teachers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a \.safetensors or \.onnx file, got x\.pt"):
        load_teacher(Path("x.pt"), torch.device("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    table(tmp_path / "data/identities/train-0.parquet", [0, 60, 120, 180], ["a", "a", "b", "b"])
    table(tmp_path / "data/faces/unlabelled-0.parquet", [90, 200])
    table(tmp_path / "data/identities/val.parquet", [10, 20, 200, 240], ["c", "c", "d", "d"])
    return tmp_path / "data"


def arguments(data: Path, *more: str) -> list[str]:
    """Three steps of a small network; torch 2.15 frees memory twice in training one of 4 channels on CPUs."""
    return [
        "--data", str(data), "--name", "tiny", "--arch", "resnet18", "--width", "16", "--epochs", "1",
        "--batch-size", "2", "--teacher", "teacher.safetensors", "--licence", "none",
        "--checkpoints", str(data.parent / "checkpoints"), "--weights", str(data.parent / "weights"), *more,
    ]


def fake_teacher(path: Path, device: torch.device) -> train_embedder.Teacher:
    """512 values that follow the crop's grey level."""
    return lambda crops: np.cos(np.arange(1, 513) * crops.mean((1, 2, 3))[:, None] / 80)


def test_a_whole_run_writes_a_model_and_its_card(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(train_embedder, "load_teacher", fake_teacher)
    assert train_embedder.main(arguments(data)) == 0
    with (data.parent / "checkpoints/embedder-tiny/log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["architecture"] == {"network": "resnet18", "width": 16}
    assert card["commercial_use"] is False and card["licence"] == "none"
    assert card["started_from"] == "random weights; learnt from teacher.safetensors"
    assert card["preprocessing"]["alignment"] == {"box_side_px": 110.0, "eyes_in_box_xy": [0.5, 0.4]}
    assert set(card["metrics"]["identities_val_own_landmarks"]) == {f"tpr_{f}" for f in ("0.2", "0.1", "0.05", "0.01",
                                                                                        "0.001")}
    embed = load_embedder(data.parent / "weights", "tiny", device="cpu", batch_size=2)
    assert embed(np.zeros((1, 112, 112, 3), np.uint8)).shape == (1, 512)


def test_a_start_that_does_not_fit_is_an_error(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(train_embedder, "load_teacher", fake_teacher)
    tensors = build_embedder({"network": "resnet18", "width": 16}).state_dict()
    del tensors["stem.0.weight"]
    safetensors.torch.save_file(tensors, "start.safetensors")
    assert train_embedder.main(arguments(data, "--start", "start.safetensors")) == 2
    assert "missing ['stem.0.weight']" in capsys.readouterr().err
