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

from jobs.evaluate.data import DataError
from jobs.train import embedder as train_embedder
from jobs.train.embedder import (
    FIVE_POINT_TEMPLATE,
    Faces,
    blend,
    class_means,
    epoch_order,
    find_faces,
    five_point_matrix,
    jittered_matrix,
    join_vectors,
    load_teacher,
    student_crop,
    warp,
)
from models.embedder import build_embedder, load_embedder
from models.store import read_model
from models.training import TrainingError, box_of_crop
from pipeline import geometry
from pipeline.geometry import AlignmentTemplate

EDGEFACE = Path(__file__).parents[4] / "shared/weights/edgeface_xs.onnx"

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
    crops = [student_crop(image, LANDMARKS, False, "full", np.random.default_rng(seed)) for seed in (1, 2, 1)]
    assert {(c.shape, c.dtype) for c in crops} == {((112, 112, 3), np.dtype(np.uint8))}
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])
    straight, mirrored = (student_crop(image, LANDMARKS, m, "colour", np.random.default_rng(3)) for m in (False, True))
    assert np.array_equal(straight[:, ::-1], mirrored)


def test_faces_are_decoded_once_and_labelled_by_name(tmp_path: Path) -> None:
    named = table(tmp_path / "a.parquet", [10, 20, 30], ["zoe", "ann", "zoe"])
    unknown = table(tmp_path / "b.parquet", [40, 50, 60])
    for _ in range(2):      # the second time from the cache
        faces = Faces([pq.read_table(named), pq.read_table(unknown)], tmp_path / "cache.npy")
        assert faces.people.tolist() == [1, 0, 1, -1, -1, -1]
        assert [int(faces.image(i)[5, 5, 0]) for i in range(len(faces))] == [10, 20, 30, 40, 50, 60]
        assert np.array_equal(faces.landmarks[3], LANDMARKS)
    with pytest.raises(TrainingError, match="delete it"):
        Faces([pq.read_table(named)], tmp_path / "cache.npy")


def test_bad_faces_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = cv2.imencode(".png", np.zeros((90, 90, 3), np.uint8))[1].tobytes()
    good = cv2.imencode(".png", np.full((144, 144, 3), 7, np.uint8))[1].tobytes()
    landmarks = [LANDMARKS.tolist()] * 4 + [(LANDMARKS + 100).tolist()]
    faces = Faces([pa.table({"image": [b"", b"torn", small, good, good], "landmarks": landmarks})], tmp_path / "c.npy")
    assert len(faces) == 1 and faces.image(0)[0, 0, 0] == 7
    assert "left out of 5 faces: 3 that are no image of 144 px, 1 with landmarks outside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("people", "expected"),
    # each person a third: two faces of person 0, one of person 1, one of nobody known
    [([0, 0, 1, -1], [1 / 6, 1 / 6, 1 / 3, 1 / 3]), ([0], [1.0])],
)
def test_balanced_epochs_draw_people_equally_often(people, expected) -> None:
    people = np.array(people)
    drawn = np.concatenate([epoch_order(people, True, np.random.default_rng(seed)) for seed in range(3000)])
    assert np.bincount(drawn, minlength=len(people)) / len(drawn) == pytest.approx(expected, abs=0.02)
    assert sorted(epoch_order(people, False, np.random.default_rng(0))) == list(range(len(people)))


def test_blending() -> None:
    faces, others = np.full((1, 2, 2, 3), 100, np.uint8), np.full((1, 2, 2, 3), 200, np.uint8)
    assert (blend(faces, others, 0.25) == 125).all()


class FakeFinder:
    """One face of 40 px and one of 30 px on every photo but the empty one."""

    def setInputSize(self, size_wh):      # noqa: N802 — OpenCV's name
        self.size_wh = size_wh

    def detect(self, photo):
        if self.size_wh[0] < 100:
            return 1, None
        landmarks = [60, 70, 80, 70, 70, 80, 62, 90, 78, 90]
        return 1, np.array([[50, 60, 38, 40, *landmarks, 0.9], [0, 0, 30, 30, *landmarks, 0.9]], np.float32)


def test_faces_found_in_photos_are_cut_like_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args, **_options: FakeFinder())
    photos = [cv2.imencode(".png", np.full((side, side, 3), 90, np.uint8))[1].tobytes() for side in (200, 50)]
    pq.write_table(pa.table({"image": photos}), tmp_path / "photos.parquet")
    found = find_faces([tmp_path / "photos.parquet"], Path("finder.onnx"))
    assert len(found) == 1
    # the crop's side is 62 px around (69, 80): 144 / 62 to the pixel; the left eye is 9 px left and 10 px above it
    scale = 144 / 62
    assert found["landmarks"][0].as_py()[0] == pytest.approx([72 - 9 * scale, 72 - 10 * scale], rel=1e-4)


def test_photos_that_cannot_be_read_are_left_out_and_no_face_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args, **_options: FakeFinder())
    photo, empty = (cv2.imencode(".png", np.full((s, s, 3), 90, np.uint8))[1].tobytes() for s in (200, 50))
    pq.write_table(pa.table({"image": [b"", b"torn", photo]}), tmp_path / "photos.parquet")
    assert len(find_faces([tmp_path / "photos.parquet"], Path("finder.onnx"))) == 1
    pq.write_table(pa.table({"image": [empty]}), tmp_path / "photos.parquet")
    for photos in ([], [tmp_path / "photos.parquet"]):
        with pytest.raises(TrainingError, match="finds no face in DATA"):
            find_faces(photos, Path("finder.onnx"))


def test_a_finder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "finder.onnx").write_bytes(b"something else")
    with pytest.raises(TrainingError, match=r"finder\.onnx is no YuNet"):
        find_faces([], tmp_path / "finder.onnx")


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


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("x.pt", r"a \.safetensors or \.onnx file, got .*x\.pt"),
        ("x.onnx", r"x\.onnx is no network over 112×112 images"),
        ("x.safetensors", r"x\.safetensors is not a safetensors file"),
    ],
)
def test_other_teachers_are_refused(name: str, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(TrainingError, match=error):
        load_teacher(tmp_path / name, torch.device("cpu"))


@pytest.mark.skipif(not EDGEFACE.exists(), reason="needs edgeface_xs of shared/weights in both forms")
@pytest.mark.parametrize(("onnx_input", "same"), [("arcface", True), ("imagenet", False)])
def test_an_onnx_teacher_gets_what_it_was_made_for(onnx_input: str, same: bool) -> None:
    crops = np.stack([cv2.resize(np.random.default_rng(i).integers(0, 255, (7, 7, 3), np.uint8), (112, 112))
                      for i in range(4)])
    a, b = (load_teacher(path, torch.device("cpu"), onnx_input)(crops)
            for path in (EDGEFACE, EDGEFACE.with_suffix(".safetensors")))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert bool(cosines.min() > 0.98) is same


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


def fake_teacher(path: Path, device: torch.device, onnx_input: str) -> train_embedder.Teacher:
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
    embed = load_embedder(read_model(data.parent / "weights", "embedder", "tiny"), device="cpu", batch_size=2)
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
    assert "is of another network: 1 tensors differ, first stem.0.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--batch-size", "64"], "6 faces do not fill a batch of 64"),
        (["--every", "9", "--batch-size", "3"], "2 faces do not fill a batch of 3"),
        (["--identities", "2", "--every", "3"], None),
        (["--epochs", "0.1"], "0 batches are too few"),
        (["--teacher", "none.onnx"], "none.onnx does not exist"),
        (["--every", "1", "--teacher", "narrow.safetensors"], None),
    ],
)
def test_errors_name_the_fix(data: Path, options, error, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    Path("narrow.safetensors").write_bytes(b"a second one may be of any width")
    monkeypatch.setattr(train_embedder, "load_teacher", fake_teacher)
    assert train_embedder.main(arguments(data, *options)) == (2 if error else 0)
    said = capsys.readouterr().err
    assert error is None or (said.startswith("error: ") and error in said)


@pytest.mark.parametrize("people", [["c", "c", "c", "c"], ["c", "d", "e", "f"]], ids=["one", "no pair"])
def test_validation_people_must_make_pairs_of_both_kinds(
    data: Path, people: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table(data / "identities/val.parquet", [10, 20, 200, 240], people)
    command = arguments(data)
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 2
    assert "val.parquet must have two images of one person and one of another" in capsys.readouterr().err


def test_nothing_is_blended_without_a_teacher(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(data, "--blend", "0.5")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 2
    assert "--blend needs --teacher" in capsys.readouterr().err


def test_a_run_is_of_its_data_and_of_its_start(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command after its own result has taken the start's place would go on from another network."""
    monkeypatch.setattr(train_embedder, "load_teacher", fake_teacher)
    (data.parent / "teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.chdir(data.parent)
    start = data.parent / "weights/embedder-tiny.safetensors"
    start.parent.mkdir(exist_ok=True)
    network = build_embedder({"network": "resnet18", "width": 16})
    safetensors.torch.save_file(network.state_dict(), start)
    command = arguments(data, "--start", str(start))
    before = start.read_bytes()
    assert train_embedder.main(command) == 0 and start.read_bytes() != before
    assert train_embedder.main(command) == 2 and "holds a run with {'start': " in capsys.readouterr().err
    start.write_bytes(before)
    assert train_embedder.main(command) == 0
    table(data / "faces/unlabelled-0.parquet", [91, 201])
    pq.write_table(pq.read_table(data / "faces/unlabelled-0.parquet"), data / "faces/unlabelled-1.parquet")
    assert train_embedder.main(command) == 2 and "'data': " in capsys.readouterr().err


def test_the_card_says_what_may_be_done_with_the_result(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(data, "--commercial-use", "--arcface-weight", "1")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    with pytest.raises(SystemExit, match="2"):
        train_embedder.main(command)
    assert "--commercial-use needs --source" in capsys.readouterr().err
    assert train_embedder.main([*command, "--source", "our staff=with their consent"]) == 0
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["commercial_use"] is True
    assert card["data"] == [{"name": "our staff", "licence": "with their consent"}]


def test_landmarks_of_another_shape_are_named(tmp_path: Path) -> None:
    rows = pa.table({"image": [b""] * 2, "landmarks": [LANDMARKS.tolist(), LANDMARKS[:2].tolist()]})
    with pytest.raises(DataError, match="every row of landmarks must be 5 pairs"):
        Faces([rows], tmp_path / "c.npy")


def test_other_data_is_decoded_anew(data: Path) -> None:
    args = train_embedder.build_parser().parse_args(arguments(data))
    args.teacher = []
    assert len(train_embedder.prepare_lessons(args, torch.device("cpu"))[0].faces) == 6
    table(data / "faces/unlabelled-0.parquet", [90, 200, 210])
    assert len(train_embedder.prepare_lessons(args, torch.device("cpu"))[0].faces) == 7


def test_the_recipe_of_the_origin_needs_no_teacher(data: Path) -> None:
    command = arguments(data, "--identities", "2", "--augment", "colour", "--arcface-weight", "1", "--flip-average")
    del command[command.index("--teacher") : command.index("--teacher") + 2]
    assert train_embedder.main(command) == 0
    card = json.loads((data.parent / "weights/embedder-tiny.json").read_text())
    assert card["started_from"] == "random weights" and card["preprocessing"]["flip_average"] is True


def test_blended_faces_are_shown_to_the_teacher_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    Path("teacher.safetensors").write_bytes(b"stands for a teacher")
    monkeypatch.setattr(train_embedder, "load_teacher", fake_teacher)
    args = train_embedder.build_parser().parse_args(arguments(data, "--blend", "1"))
    lessons, _ = train_embedder.prepare_lessons(args, torch.device("cpu"))
    inputs, (targets, relations, people) = lessons.batch(np.array([0, 3]), args, np.random.default_rng(5))
    assert inputs.shape == (2, 3, 112, 112) and people.tolist() == [-1, -1]
    assert torch.equal(targets, relations)
    # greys 0 and 180 blended are a grey in between, whose vector is neither face's own
    cosines = targets.numpy() @ lessons.targets[[0, 3]].T
    assert (cosines < 0.99).all()
