from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.data import DataError
from jobs.train.faces import (
    FIVE_POINT_TEMPLATE,
    Crops,
    Faces,
    blend,
    epoch_order,
    find_faces,
    five_point_matrix,
    jittered_matrix,
    student_crop,
    warp,
)
from models.training import TrainingError, box_of_crop
from pipeline import geometry
from pipeline.geometry import AlignmentTemplate
from tests.jobs.train.crops import LANDMARKS, table


@pytest.mark.parametrize(
    ("scale", "turn_deg", "shift"),
    [(1.0, 0.0, (0, 0)), (2.5, 0.0, (30, -7)), (0.5, 40.0, (100, 3)), (1.0, -170.0, (0, 0))],
)
def test_the_five_point_matrix_recovers_a_similarity(scale: float, turn_deg: float, shift: tuple[float, float]) -> None:
    turn = np.radians(turn_deg)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = FIVE_POINT_TEMPLATE @ linear.T + shift
    matrix = five_point_matrix(moved)
    assert np.allclose(geometry.transform(matrix, moved), FIVE_POINT_TEMPLATE)


def test_the_five_point_matrix_never_mirrors() -> None:
    matrix = five_point_matrix(FIVE_POINT_TEMPLATE * (-1, 1) + (112, 0))
    assert np.linalg.det(matrix[:, :2]) > 0


def test_jittered_matrices_scatter_around_the_exact_one() -> None:
    exact = geometry.align_matrix(box_of_crop(144), LANDMARKS[0], LANDMARKS[1], AlignmentTemplate())
    drawn = np.array([jittered_matrix(LANDMARKS, np.random.default_rng(seed)) for seed in range(400)])
    assert np.abs(drawn.mean(0) - exact)[:, :2].max() < 0.03
    assert np.abs(geometry.transform(drawn, LANDMARKS[None, :2]).mean(0)
                  - geometry.transform(exact, LANDMARKS[:2])).max() < 0.5
    scales = np.linalg.norm(drawn[:, :, 0], axis=1) / np.linalg.norm(exact[:, 0])
    assert 0.02 < scales.std() < 0.08


def test_warp_moves_pixels_like_points() -> None:
    image = np.zeros((144, 144, 3), np.uint8)
    cv2.circle(image, (90, 62), 3, (255, 255, 255), -1)
    matrix = geometry.align_matrix(box_of_crop(144), LANDMARKS[0], LANDMARKS[1], AlignmentTemplate())
    y, x = np.nonzero(warp(image, matrix)[..., 0] > 127)
    expected = geometry.transform(matrix, np.array([[90.5, 62.5]]))[0]
    assert np.abs(np.array([x.mean() + 0.5, y.mean() + 0.5]) - expected).max() < 0.3


def test_a_student_crop_depends_on_its_generator_only() -> None:
    image = np.random.default_rng(0).integers(0, 256, (144, 144, 3), np.uint8)
    image.flags.writeable = False
    crops = [student_crop(image, LANDMARKS, False, "full", np.random.default_rng(seed)) for seed in (1, 2, 1)]
    assert {(c.shape, c.dtype) for c in crops} == {((112, 112, 3), np.dtype(np.uint8))}
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])
    straight, mirrored = (student_crop(image, LANDMARKS, m, "colour", np.random.default_rng(3)) for m in (False, True))
    assert np.array_equal(straight[:, ::-1], mirrored)


def crops(path: Path, *, named: bool = True) -> Crops:
    """All crops of a file."""
    return Crops(path, np.arange(pq.read_metadata(path).num_rows), named)


@pytest.mark.parametrize("rows", [[], [0], [63, 64, 65], [1, 128, 150], list(range(0, 151, 7))])
def test_crops_are_read_some_at_a_time(tmp_path: Path, rows: list[int]) -> None:
    numbers = np.arange(151)
    landmarks = [(LANDMARKS + number).tolist() for number in numbers]
    pq.write_table(pa.table({"image": [b"%d" % n for n in numbers], "landmarks": landmarks,
                             "identity": [f"p{n}" for n in numbers]}), tmp_path / "c.parquet")
    chosen = Crops(tmp_path / "c.parquet", np.array(rows, int), named=True)
    groups = list(chosen.images())
    assert [int(image) for images in groups for image in images] == rows and max(map(len, groups)) <= 64
    assert chosen.landmarks()[:, 0, 0].tolist() == [54 + row for row in rows]
    assert chosen.names() == [f"p{row}" for row in rows]


def test_faces_are_decoded_once_and_numbered_by_name(tmp_path: Path) -> None:
    named = table(tmp_path / "a.parquet", [10, 20, 30], ["zoe", "ann", "zoe"])
    unknown = table(tmp_path / "b.parquet", [40, 50, 60])
    for _ in range(2):      # the second time from the cache
        faces = Faces([crops(named), crops(unknown, named=False)], tmp_path / "cache.npy")
        assert faces.people.tolist() == [1, 0, 1, -1, -1, -1]
        assert [int(faces.image(i)[5, 5, 0]) for i in range(len(faces))] == [10, 20, 30, 40, 50, 60]
        assert np.array_equal(faces.landmarks[3], LANDMARKS)
    with pytest.raises(TrainingError, match="delete it"):
        Faces([crops(named)], tmp_path / "cache.npy")


def test_bad_faces_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = cv2.imencode(".png", np.zeros((90, 90, 3), np.uint8))[1].tobytes()
    good = cv2.imencode(".png", np.full((144, 144, 3), 7, np.uint8))[1].tobytes()
    landmarks = [LANDMARKS.tolist()] * 4 + [(LANDMARKS + 100).tolist()]
    pq.write_table(
        pa.table({"image": [None, b"torn", small, good, good], "landmarks": landmarks}), tmp_path / "c.parquet"
    )
    faces = Faces([crops(tmp_path / "c.parquet", named=False)], tmp_path / "c.npy")
    assert len(faces) == 1 and faces.image(0)[0, 0, 0] == 7
    assert "left out of 5 faces: 3 that are no image of 144 px, 1 with landmarks outside" in capsys.readouterr().out


def test_landmarks_of_another_shape_are_refused(tmp_path: Path) -> None:
    rows = pa.table({"image": [b""] * 2, "landmarks": [LANDMARKS.tolist(), LANDMARKS[:2].tolist()]})
    pq.write_table(rows, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="every row of landmarks must be 5 pairs"):
        Faces([crops(tmp_path / "c.parquet", named=False)], tmp_path / "c.npy")


@pytest.mark.parametrize(
    ("people", "expected"),
    # each person has a third: two faces of person 0, one of person 1, one unknown
    [([0, 0, 1, -1], [1 / 6, 1 / 6, 1 / 3, 1 / 3]), ([0], [1.0])],
)
def test_a_balanced_epoch_draws_people_with_equal_chance(people, expected) -> None:
    people = np.array(people)
    drawn = np.concatenate([epoch_order(people, True, np.random.default_rng(seed)) for seed in range(3000)])
    assert np.bincount(drawn, minlength=len(people)) / len(drawn) == pytest.approx(expected, abs=0.02)
    assert sorted(epoch_order(people, False, np.random.default_rng(0))) == list(range(len(people)))


def test_blending() -> None:
    faces, others = np.full((1, 2, 2, 3), 100, np.uint8), np.full((1, 2, 2, 3), 200, np.uint8)
    assert (blend(faces, others, 0.25) == 125).all()


class FakeFinder:
    """One face of 40 px and one of 30 px on every photo of 100 px and more."""

    def setInputSize(self, size_wh):      # noqa: N802 — OpenCV's name
        self.size_wh = size_wh

    def detect(self, photo):
        if self.size_wh[0] < 100:
            return 1, None
        landmarks = [60, 70, 80, 70, 70, 80, 62, 90, 78, 90]
        return 1, np.array([[50, 60, 38, 40, *landmarks, 0.9], [0, 0, 30, 30, *landmarks, 0.9]], np.float32)


def test_found_faces_are_cut_like_the_crops_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args, **_options: FakeFinder())
    photos = [cv2.imencode(".png", np.full((side, side, 3), 90, np.uint8))[1].tobytes() for side in (200, 50)]
    pq.write_table(pa.table({"image": photos}), tmp_path / "photos.parquet")
    find_faces([tmp_path / "photos.parquet"], Path("finder.onnx"), tmp_path / "found.parquet")
    found = pq.read_table(tmp_path / "found.parquet")
    assert len(found) == 1
    # the crop is 62 px wide around (69, 80), scaled by 144 / 62; the left eye is 9 px left and 10 px above the middle
    scale = 144 / 62
    assert found["landmarks"][0].as_py()[0] == pytest.approx([72 - 9 * scale, 72 - 10 * scale], rel=1e-4)


def test_found_faces_are_written_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args, **_options: FakeFinder())
    monkeypatch.setattr("jobs.train.faces.FACES_AT_ONCE", 2)
    photo = cv2.imencode(".png", np.full((200, 200, 3), 90, np.uint8))[1].tobytes()
    pq.write_table(pa.table({"image": [photo] * 5}), tmp_path / "photos.parquet")
    find_faces([tmp_path / "photos.parquet"], Path("finder.onnx"), tmp_path / "found.parquet")
    found = pq.ParquetFile(tmp_path / "found.parquet")
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [2, 2, 1]


def test_photos_that_cannot_be_read_are_left_out_and_no_face_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_args, **_options: FakeFinder())
    photo, empty = (cv2.imencode(".png", np.full((s, s, 3), 90, np.uint8))[1].tobytes() for s in (200, 50))
    pq.write_table(pa.table({"image": [b"", b"torn", photo]}), tmp_path / "photos.parquet")
    find_faces([tmp_path / "photos.parquet"], Path("finder.onnx"), tmp_path / "found.parquet")
    assert len(pq.read_table(tmp_path / "found.parquet")) == 1
    pq.write_table(pa.table({"image": [empty]}), tmp_path / "photos.parquet")
    for photos in ([], [tmp_path / "photos.parquet"]):
        with pytest.raises(TrainingError, match="finds no face in DATA"):
            find_faces(photos, Path("finder.onnx"), tmp_path / "found.parquet")


def test_another_file_than_a_finder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "finder.onnx").write_bytes(b"something else")
    with pytest.raises(TrainingError, match=r"finder\.onnx is no YuNet"):
        find_faces([], tmp_path / "finder.onnx", tmp_path / "found.parquet")
