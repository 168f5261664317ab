from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.data import DataError, decode_image
from jobs.train import agree_eyes, label_eyes
from jobs.train.eye_teachers import roll_of_five
from jobs.train.label_eyes import (
    Face,
    Looks,
    Part,
    all_parts,
    held_out_photos,
    is_hard,
    kept_face,
    kept_matrix,
    stored_crop,
)
from models.eye_layout import FACE_PX
from pipeline import geometry
from tests.support.evaluation import encoded

FIVE = np.array([[70.0, 80], [122, 80], [96, 100], [80, 120], [112, 120]])
TWELVE = np.concatenate([FIVE[0] + np.zeros((6, 2)), FIVE[1] + np.zeros((6, 2))])


@pytest.mark.parametrize("turn", [0.0, 30.0, 90.0, 180.0, -135.0])
def test_a_turned_face_is_kept_upright(turn: float) -> None:
    """A face turned clockwise by so many degrees: its right ear comes to the right of the middle."""
    box = np.array([100.0, 60.0, 148.0, 108.0])                      # middle (124, 84), side 48: enlarged twice
    angle = np.radians(turn)
    ear = np.array([[124 + 24 * np.cos(angle), 84 + 24 * np.sin(angle)]])
    matrix = kept_matrix(box, turn)
    assert np.allclose(geometry.transform(matrix, ear), [[96 + 48, 96]])
    image = np.zeros((200, 240, 3), np.uint8)
    cv2.circle(image, tuple(int(v) for v in ear[0]), 4, (255, 255, 255), -1)
    y, x = np.nonzero(kept_face(image, matrix)[..., 0] > 127)
    assert np.abs(np.array([x.mean(), y.mean()]) - (144, 96)).max() < 2.5


@pytest.mark.parametrize("turn", [0.0, 25.0, -80.0, 170.0])
def test_the_roll_by_five_points(turn: float) -> None:
    turned = geometry.transform(kept_matrix(np.array([48, 48, 144, 144]), -turn), FIVE)
    assert roll_of_five(turned) == pytest.approx(turn)


@pytest.mark.parametrize(
    ("nose", "eyes_apart", "source", "hard"),
    [(0.0, 50, "pins", False), (0.0, 50, "rof", True), (14.0, 50, "pins", True), (0.0, 25, "pins", True)],
)
def test_hard_faces(nose: float, eyes_apart: float, source: str, hard: bool) -> None:
    landmarks = np.array([[50.0, 60], [50 + eyes_apart, 60], [50 + eyes_apart / 2 + nose, 80], [0, 0], [0, 0]])
    assert is_hard(landmarks, 100.0, source) is hard


def test_faces_of_photos_are_stored_with_their_surroundings() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    content, crop, matrix = stored_crop(pixels, np.array([10.0, 20, 50, 60]))       # one box side about: -10 … 70
    assert crop.shape == (80, 70, 3)                                                # the photo ends at its left
    assert np.allclose(geometry.transform(matrix, np.array([[10.0, 20]])), [[10, 20]])
    assert np.array_equal(decode_image(content), crop)
    _, large, matrix = stored_crop(pixels, np.array([100.0, 0, 324, 224]))          # 224 px: stored at half size
    assert large.shape == (150, 200, 3)
    assert np.allclose(geometry.transform(matrix, np.array([[324.0, 224]])), [[162, 112]])


def write_data(folder: Path) -> None:
    for name in ("eyes", "identities", "faces", "detection"):
        (folder / name).mkdir(parents=True)
    face = encoded(np.full((144, 144, 3), 90, np.uint8))
    angle = np.linspace(0, 2 * np.pi, 68)
    points = np.stack([72 + 30 * np.cos(angle), 72 + 30 * np.sin(angle)], 1)
    landmarks = [[[50.0, 60], [94, 60], [72, 80], [60, 100], [84, 100]]] * 3
    pq.write_table(pa.table({"image": [face], "points": [points.tolist()]}), folder / "eyes/train.parquet")
    for file in ("identities/train-0", "identities/val", "faces/unlabelled-0"):
        pq.write_table(pa.table({"image": [face, b"torn", face], "landmarks": landmarks}), folder / f"{file}.parquet")
    photos = {"name": ["wider/a/held.jpg", "wider/a/free.jpg"], "image": [face, face],
              "boxes": [[[20.0, 20, 80, 80]], [[20.0, 20, 80, 80], [100, 100, 110, 119]]]}
    pq.write_table(pa.table(photos), folder / "detection/train-0.parquet")
    pq.write_table(pa.table({"name": ["held.jpg"], "points98": [[0.0] * 196]}), folder / "eyes/wild_val.parquet")


def test_photos_that_eyes_are_measured_on_are_left_out(tmp_path: Path) -> None:
    write_data(tmp_path)
    held_out = held_out_photos(tmp_path)
    assert held_out == {"held.jpg"}
    part = next(part for part in all_parts(tmp_path) if part.kind == "photos")

    def finds_nothing(canvases: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))] * len(canvases)

    faces = list(label_eyes.photo_faces(part, held_out, finds_nothing))
    assert len(faces) == 1                      # of the other photo, the one of 60 px; the other is 19 px high
    assert np.allclose(faces[0].box[2:] - faces[0].box[:2], 60) and not faces[0].boxed

    def finds_it(canvases: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        scale = 640 / 144
        return [(np.array([[22, 20, 80, 82]], np.float32) * scale, np.ones(1, np.float32))] * len(canvases)

    found = next(label_eyes.photo_faces(part, held_out, finds_it))
    assert found.boxed and np.allclose(found.box[2:] - found.box[:2], [58, 62], atol=0.1)


def test_every_file_is_looked_at_and_no_validation_part(tmp_path: Path) -> None:
    write_data(tmp_path)
    assert {part.name for part in all_parts(tmp_path)} == {
        "detection-train-0-000000.parquet", "eyes-train-000000.parquet", "identities-train-0-000000.parquet",
        "faces-unlabelled-0-000000.parquet",
    }
    (tmp_path / "eyes/train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet does not exist"):
        all_parts(tmp_path)


class Five:
    """Sees a face in the middle, as large as its box, turned by `turn` in the image that it is given first."""

    def __init__(self, turn: float = 0.0) -> None:
        self.turn, self.calls = turn, 0

    def __call__(self, faces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        turn = self.turn if self.calls == 0 else 0.0
        self.calls += 1
        points = geometry.transform(kept_matrix(np.array([48, 48, 144, 144]), -turn), FIVE)
        count = len(faces)
        return np.repeat(points[None], count, 0), np.array([[48.0, 48, 144, 144]] * count), np.full(count, 0.9)


def looks(turn: float = 0.0) -> Looks:
    def twelve(face: np.ndarray) -> np.ndarray:
        assert face.shape == (FACE_PX, FACE_PX, 3)
        return TWELVE

    def ours(chips: list[np.ndarray]) -> np.ndarray:
        return np.repeat(TWELVE[None] - 19, len(chips), 0)              # a chip begins 19 px inside a kept face

    return Looks(Five(turn), twelve, twelve, ours)


@pytest.mark.parametrize("turn", [0.0, 5.0, 40.0, -120.0])
def test_what_teachers_see_on_the_upright_face_is_told_of_the_image(turn: float) -> None:
    box = np.array([24.0, 24, 120, 120])                                # as large as in a kept face, 24 px further left
    pixels = np.zeros((144, 144, 3), np.uint8)
    row = looks(turn).row(Face("x", b"content", pixels, box, landmarks=FIVE - 24))
    upright = turn if abs(turn) > 8 else 0.0
    assert row["turn"] == pytest.approx(upright)
    straight, mirrored = np.array(row["pfld"]).reshape(2, 12, 2)
    to_image = geometry.invert(kept_matrix(np.array(row["box"]), upright))
    assert np.allclose(straight, geometry.transform(to_image, TWELVE), atol=1e-3)
    # A network that says the same of the mirror image sees each eye where the other one is: 70 ↔ 192 − 122.
    assert np.allclose(mirrored, straight, atol=1e-3)
    assert np.allclose(np.array(row["ours"]), np.array(row["pfld"]), atol=1e-3)
    assert np.isnan(row["given"]).all() and np.allclose(row["landmarks"], (FIVE[:2] - 24).ravel())


def test_looks_become_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    monkeypatch.setattr(label_eyes, "_looks", looks())
    monkeypatch.setattr(label_eyes, "_detect", list)          # not called: there are no photos
    out = tmp_path / "looks"
    out.mkdir()
    for part in all_parts(tmp_path / "data"):
        if part.kind != "photos":
            label_eyes.label_part(part, 1, set(), out)
    assert sorted(path.name for path in out.iterdir()) == [
        "eyes-train-000000.parquet", "faces-unlabelled-0-000000.parquet", "identities-train-0-000000.parquet",
    ]
    assert agree_eyes.main(["--looks", str(out), "--out", str(tmp_path / "labels")]) == 0
    assert "5 faces" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "labels").to_pylist()
    assert sorted(row["source"] for row in table) == ["300w", "utk", "utk", "utk", "utk"]
    people = next(row for row in table if row["whole"])
    assert people["differences"] == [0.0, 0.0]
    assert all(row["whole"] is (row["source"] == "300w") for row in table)
    again = agree_eyes.main(["--looks", str(tmp_path / "nothing"), "--out", str(tmp_path / "labels")])
    assert again == 2 and "run jobs.train label-eyes first" in capsys.readouterr().err


def test_parts_of_crops_take_hard_faces_and_each_nth(tmp_path: Path) -> None:
    frontal = [[50.0, 60], [94, 60], [72, 80], [60, 100], [84, 100]]
    turned = [[50.0, 60], [94, 60], [92, 80], [60, 100], [84, 100]]
    images = [encoded(np.full((144, 144, 3), value, np.uint8)) for value in range(10, 70, 10)]
    path = tmp_path / "train-0.parquet"
    landmarks = [frontal, frontal, turned, frontal, frontal, frontal]
    pq.write_table(pa.table({"image": images, "landmarks": landmarks}), path)
    faces = label_eyes.crop_faces(Part("crops", path, 0, 6, "x"), 4)
    assert [round(face.pixels.mean()) for face in faces] == [10, 30, 50]        # rows 0 and 4, and the turned one
