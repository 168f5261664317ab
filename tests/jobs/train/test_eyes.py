from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.train import eyes as train_eyes
from jobs.train.eyes import (
    FACE_PX,
    MIRRORED,
    EyeLoss,
    LabelledFaces,
    Landmarks,
    box_of_points,
    centre,
    face_matrix,
    keep_face,
    keypointer_of,
    label_faces,
    main,
    read_points,
    training_view,
    unlabelled_faces,
)
from models.eye_layout import WFLW_EYES
from models.networks.eyes import EyeResNet
from models.training import TrainingError, box_of_crop, wing_loss
from pipeline import geometry

# Six points around each eye of an upright face, in 300-W's order, in pixels of a kept face (192×192).
LEFT = [(60, 80), (66, 76), (74, 76), (80, 80), (74, 84), (66, 84)]
POINTS = np.array(LEFT + [(x + 52, y) for x, y in LEFT], np.float64)
POINTS.flags.writeable = False


def encoded(image: np.ndarray) -> bytes:
    return cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()


def dotted_face() -> np.ndarray:
    """A dark kept face with a white dot at every eye point."""
    face = np.full((FACE_PX, FACE_PX, 3), 30, np.uint8)
    for x, y in POINTS.astype(int):
        face[y - 1 : y + 1, x - 1 : x + 1] = 255
    face.flags.writeable = False
    return face


def test_mirrored_points_keep_their_order() -> None:
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(12))
    # the mirror image of this face at x = 96 is the face itself
    assert np.array_equal(POINTS[MIRRORED] * (-1, 1) + (192, 0), POINTS)


def test_wflw_eyes_are_the_corners_and_lids() -> None:
    # WFLW has eight points an eye; 300-W lacks the middles of the lids (62, 66; 70, 74)
    assert sorted(set(range(60, 76)) - set(WFLW_EYES.tolist())) == [62, 66, 70, 74]


def test_the_box_begins_above_the_brows() -> None:
    points = np.full((68, 2), 100.0)
    points[0], points[1] = (10, 50), (110, 150)
    assert np.allclose(box_of_points(points), [10, 15, 110, 148.5])


@pytest.mark.parametrize(
    ("box", "point", "kept"),
    [
        ((0, 0, 96, 96), (0, 0), (48, 48)),
        ((100, 100, 148, 196), (124, 148), (96, 96)),      # the longer side is 96: no scaling
        ((0, 0, 192, 100), (96, 50), (96, 96)),            # halved
        ((0, 0, 192, 100), (192, 50), (144, 96)),
    ],
)
def test_face_matrix(box, point, kept) -> None:
    assert np.allclose(geometry.transform(face_matrix(np.array(box)), np.array([point], np.float64))[0], kept)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_pixels_of_a_kept_face_move_like_its_points(scale: float) -> None:
    side = round(400 * scale)
    image = np.zeros((side, side, 3), np.uint8)
    cv2.circle(image, (round(250 * scale), round(150 * scale)), max(2, round(8 * scale)), (255, 255, 255), -1)
    box = np.array([100, 100, 300, 300]) * scale
    kept = keep_face(image, box)
    assert kept.shape == (FACE_PX, FACE_PX, 3)
    y, x = np.nonzero(kept[..., 0] > 127)
    expected = geometry.transform(face_matrix(box), np.array([[250.0, 150.0]]) * scale)[0]
    assert np.abs(np.array([x.mean() + 0.5, y.mean() + 0.5]) - expected).max() < 0.6


def test_a_kept_face_repeats_the_edges() -> None:
    image = np.full((50, 50, 3), 77, np.uint8)
    assert (keep_face(image, np.array([0, 0, 50, 50])) == 77).all()


def test_the_points_of_a_training_view_move_with_its_pixels() -> None:
    face = dotted_face()
    bright = []
    for seed in range(40):
        view, points = training_view(face, POINTS, 112, np.random.default_rng(seed))
        assert view.shape == (112, 112, 3) and view.dtype == np.uint8
        assert points.shape == (12, 2)
        pixels = np.clip((points * 112).astype(int), 0, 111)
        at_points = view[pixels[:, 1], pixels[:, 0]].mean()
        bright.append(at_points - view.mean())
        left, right = geometry.eye_centres(points)
        # turns stay near 75° or less: the left eye in the image stays the first
        assert left[0] < right[0]
    assert np.median(bright) > 30
    repeated = training_view(face, POINTS, 112, np.random.default_rng(3))
    assert np.array_equal(repeated[0], training_view(face, POINTS, 112, np.random.default_rng(3))[0])


def test_the_loss_is_in_pixels() -> None:
    predicted, wanted = torch.full((1, 12, 2), 0.5), torch.full((1, 12, 2), 0.55)
    expected = wing_loss(torch.tensor([5.0]), torch.tensor([0.0]), 6.0, 1.0)
    whole = torch.ones(1, dtype=torch.bool)
    assert float(EyeLoss(100, "wing")(predicted, wanted, whole)) == pytest.approx(float(expected), rel=1e-4)
    assert float(EyeLoss(100, "mse")(predicted, wanted, whole)) == pytest.approx(25.0, rel=1e-4)


def test_only_the_centres_count_for_labels_that_are_not_whole() -> None:
    wanted = torch.zeros(2, 12, 2)
    predicted = wanted.clone()
    predicted[:, 0, 0], predicted[:, 1, 0] = 0.06, -0.06          # two points of one eye move, its centre does not
    predicted[:, 6, 1] = 0.06                                     # the centre of the other eye is 1 px too low
    whole = torch.tensor([True, False])
    # whole: 3 of 24 values are 6 px off; centres: 6 of 24 values 1 px off; mean over both faces
    expected = (3 * 36 / 24 + 6 * 1 / 24) / 2
    assert float(EyeLoss(100, "mse")(predicted, wanted, whole)) == pytest.approx(expected, rel=1e-4)


def test_keep_start_needs_a_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", "x", "--teacher", "y", "--name", "z", "--keep-start", "0.5"])
    assert "needs --start" in capsys.readouterr().err


def test_centring_removes_the_mean_error() -> None:
    torch.manual_seed(0)
    network = EyeResNet("resnet18", 16, 64)
    faces = [np.random.default_rng(seed).integers(0, 256, (FACE_PX, FACE_PX, 3), np.uint8) for seed in range(3)]
    points = np.stack([POINTS, POINTS + np.array([3, 0]), POINTS + np.array([0, 6])])

    def mean_error() -> np.ndarray:
        located = keypointer_of(network, 64, 0.6, torch.device("cpu"))(faces)
        return (points - located).mean((0, 1))

    assert np.abs(mean_error()).max() > 1
    centre(network, LabelledFaces(faces, points, np.ones(3, bool)), torch.device("cpu"))
    assert np.abs(mean_error()).max() < 0.2          # the view is rounded from 115.2 to 116 px


def test_landmarks_of_a_face_and_its_mirror_are_averaged() -> None:
    landmarks = Landmarks.__new__(Landmarks)
    points_of_all = np.stack([(10.0 * k, k) for k in range(12)])      # of every face, also of a mirrored one
    landmarks._pfld = lambda face: points_of_all
    points, apart = landmarks(np.zeros((FACE_PX, FACE_PX, 3), np.uint8))
    # straight: point 0 at (0, 0); mirrored: it is point 9, at (90, 9), seen from the right edge at 192
    assert np.allclose(points[0], [(0 + 192 - 90) / 2, (0 + 9) / 2])
    assert apart > 0.5


def test_unlabelled_faces_from_all_folders(tmp_path: Path) -> None:
    for folder in ("identities", "faces", "detection"):
        (tmp_path / folder).mkdir()
    assert list(unlabelled_faces(tmp_path, 1)) == []
    crops = [encoded(np.full((144, 144, 3), value, np.uint8)) for value in (10, 20, 30)]
    landmarks = [[[60.0, 70], [84, 70], [0, 0], [0, 0], [0, 0]]] * 4
    for name, images in {"identities/train-0": [*crops, b"torn"], "identities/val": crops,       # val is never read
                         "faces/unlabelled-0": crops[:1]}.items():
        pq.write_table(pa.table({"image": images, "landmarks": landmarks[: len(images)]}), tmp_path / f"{name}.parquet")
    photo = encoded(np.full((200, 200, 3), 40, np.uint8))
    boxes = [[[0.0, 0, 39, 39], [50, 50, 60, 90]], []]                                     # 39 px, 40 px; none
    pq.write_table(pa.table({"image": [photo, photo], "boxes": boxes}), tmp_path / "detection/train-0.parquet")
    faces = list(unlabelled_faces(tmp_path, 2))
    assert [round(face.mean()) for face, _ in faces] == [10, 30, 10, 40]
    assert {face.shape for face, _ in faces} == {(FACE_PX, FACE_PX, 3)}
    assert faces[3][1] is None
    # the box of a crop is 144 / 1.55 = 92.9 px: the scale is 96 / 92.9, and the middle moves from 72 to 96
    scale = 96 * 1.55 / 144
    assert np.allclose(faces[0][1], [[96 - 12 * scale, 96 - 2 * scale], [96 + 12 * scale, 96 - 2 * scale]])


class SamePoints:
    """The same points for every face; on black faces the mirror image has others."""

    def __init__(self, path: Path) -> None:
        pass

    def __call__(self, face: np.ndarray) -> tuple[np.ndarray, float]:
        return POINTS.copy(), 0.3 if face.mean() < 5 else 0.01


def test_labels_are_whole_if_network_and_landmarks_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_eyes, "Landmarks", SamePoints)
    for folder in ("identities", "detection"):
        (tmp_path / folder).mkdir()
    to_crop = geometry.invert(face_matrix(box_of_crop(144)))
    beside = np.stack(geometry.eye_centres(POINTS)) + np.array([1, 0])          # one pixel right of the network's eyes
    agreeing = geometry.transform(to_crop, beside)
    elsewhere = agreeing + np.array([0, 20])
    images = [encoded(np.full((144, 144, 3), value, np.uint8)) for value in (100, 100, 0)]
    landmarks = [[*eyes.tolist(), [0.0, 0], [0.0, 0], [0.0, 0]] for eyes in (agreeing, elsewhere, agreeing)]
    pq.write_table(pa.table({"image": images, "landmarks": landmarks}), tmp_path / "identities/train-0.parquet")
    boxes = [[[50.0, 50, 100, 100]], [[50.0, 50, 100, 100]]]
    photos = [encoded(np.full((144, 144, 3), value, np.uint8)) for value in (100, 0)]
    pq.write_table(pa.table({"image": photos, "boxes": boxes}), tmp_path / "detection/train-0.parquet")
    for _ in range(2):                                                            # the second time from the cache
        faces = label_faces(tmp_path, 1, Path("teacher.onnx"), tmp_path / "cache")
        assert faces.whole.tolist() == [True, False, False, True]                 # the dark photo's face is left out
        assert faces.drawn.tolist() == [0, 1, 2, 3, 1, 1, 2, 2]
        assert np.allclose(faces.points[[0, 3]], POINTS)
        # only the centres, moved by the mean difference: one pixel to the left
        expected = np.repeat(geometry.transform(face_matrix(box_of_crop(144)), elsewhere) - (1, 0), 6, axis=0)
        assert np.allclose(faces.points[1], expected)


def test_bad_annotations_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = np.random.default_rng(1).uniform(20, 80, (68, 2))
    outside, unknown = good.copy(), good.copy()
    outside[40], unknown[3] = (50, 101), np.nan
    nowhere = np.zeros((68, 2))
    path = tmp_path / "train.parquet"
    image = encoded(np.zeros((100, 100, 3), np.uint8))
    rows = [(image, good), (image, outside), (image, unknown), (image, nowhere), (b"torn", good)]
    pq.write_table(pa.table({"image": [i for i, _ in rows], "points": [p.tolist() for _, p in rows]}), path)
    images, points = read_points(path)
    assert len(images) == len(points) == 1
    said = capsys.readouterr().out
    assert "left out of 5 faces: 1 images that cannot be read, 3 with an eye outside or points missing" in said
    pq.write_table(pa.table({"image": [b"torn"], "points": [good.tolist()]}), path)
    with pytest.raises(TrainingError, match="has no face that can be used"):
        read_points(path)


def test_a_teacher_without_a_face_to_label_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_eyes, "Landmarks", SamePoints)
    with pytest.raises(TrainingError, match="holds no face that --teacher can label"):
        label_faces(tmp_path, 1, Path("teacher.onnx"), tmp_path / "cache")


def test_data_with_photos_only_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_eyes, "Landmarks", SamePoints)
    (tmp_path / "detection").mkdir()
    photo = encoded(np.full((144, 144, 3), 100, np.uint8))
    pq.write_table(pa.table({"image": [photo, photo], "boxes": [[[50.0, 50, 100, 100]], None]}),
                   tmp_path / "detection/train-0.parquet")
    faces = label_faces(tmp_path, 1, Path("teacher.onnx"), tmp_path / "cache")
    assert faces.whole.tolist() == [True]
    assert np.allclose(faces.points, POINTS)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--teacher", "none.onnx"], "none.onnx does not exist"),
        (["--start", "none.safetensors"], "none.safetensors does not exist"),
        (["--weights", "a-file"], "cannot make the weights folder"),
        ([], "eyes/train.parquet does not exist"),
    ],
)
def test_missing_files_are_named_at_once(
    options: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    assert main(["--data", "data", "--name", "tiny", "--checkpoints", "c", "--weights", "w", *options]) == 2
    assert error in capsys.readouterr().err


def test_a_whole_run_writes_a_model_and_its_card(tmp_path: Path) -> None:
    (tmp_path / "eyes").mkdir()
    angle = np.linspace(0, 2 * np.pi, 68)
    points = np.stack([80 + 30 * np.cos(angle), 80 + 30 * np.sin(angle)], 1)
    images = [encoded(np.full((160, 160, 3), value, np.uint8)) for value in (20, 90, 160)]
    for part in ("train", "val"):
        table = pa.table({"image": images, "points": [points.tolist()] * 3})
        pq.write_table(table, tmp_path / f"eyes/{part}.parquet")
    command = ["--data", str(tmp_path), "--name", "tiny", "--width", "16", "--input-px", "64", "--steps", "2",
               "--batch-size", "2", "--checkpoints", str(tmp_path / "c"), "--weights", str(tmp_path / "w")]
    assert main(command) == 0
    card = json.loads((tmp_path / "w/keypointer-tiny.json").read_text())
    assert card["started_from"] == "random weights"
    assert card["command"].startswith("python -m jobs.train eyes --data")
    assert len(card["data"]) == 1                                                 # no network labelled faces
