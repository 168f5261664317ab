from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.eyes import box_of_points
from models.store import read_card
from tests.support.evaluation import encoded, face, tiny_weights, write_output, zidane


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny_weights(tmp_path / "weights")


def face_points(size: float) -> np.ndarray:
    """68 points in a square of this size: the outer eye corners are at (1/4, 2/5) and (3/4, 2/5) of it."""
    points = np.full((68, 2), 0.5)
    points[:2] = (0.25, 0.25), (0.75, 0.75)
    points[36:42], points[42:48] = (0.4, 0.4), (0.6, 0.4)
    points[36], points[45] = (0.25, 0.4), (0.75, 0.4)
    return points * size


def test_eyes_on_crops(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({
        "image": [encoded(zidane()[20:340, 822:1142]), encoded(np.zeros((320, 320, 3), np.uint8))],
        "points": [face_points(320).tolist()] * 2,
    })
    pq.write_table(table, tmp_path / "eyes.parquet")
    assert main([
        "eyes", str(tmp_path / "eyes.parquet"), "--weights", str(weights), "--keypointer", "tiny", "--device", "cpu",
        "--update-card", "--out", str(tmp_path / "out"),
    ]) == 0
    figures = json.loads((tmp_path / "out/eyes.json").read_text())
    assert (figures["faces"], figures["found"]) == (2, 1)
    assert figures["failures"] == 1.0                # an untrained network, and a face that is not found
    assert figures["nme"] > 0.1
    assert figures["auc"] == 0.0
    assert (tmp_path / "out/eyes.md").read_text() == capsys.readouterr().out
    assert (tmp_path / "out/eyes.png").exists()
    metrics = read_card(weights, "keypointer", "tiny").metrics
    assert metrics["a"] == 1 and metrics["eyes"]["nme"] == figures["nme"]


def test_eyes_by_an_output_of_jobs_extract(tmp_path: Path, weights: Path) -> None:
    """Three faces: one exact, one 4% off and beside another face, one not found."""
    points = face_points(100)
    exact, off = points[36:48], points[36:48] + np.array([0, 2])     # the outer corners are 50 px apart
    models = {"keypointer": read_card(weights, "keypointer", "tiny").identity, "detector": "d-face@1"}
    fits, beside = (25, 25, 75, 75), (70, 70, 90, 90)
    finds = (("/a", fits, exact), ("/b", beside, exact), ("/b", fits, off), ("/c", beside, exact))
    faces = [face(uri, box, eye_points=found.ravel().tolist(), **models) for uri, box, found in finds]
    output = write_output(tmp_path / "output", ["/a", "/b", "/c"], faces)
    pq.write_table(pa.table({"name": ["c", "a", "b"], "points": [points.tolist()] * 3}), tmp_path / "truth.parquet")
    assert main([
        "eyes", str(output), "--truth", str(tmp_path / "truth.parquet"), "--weights", str(weights), "--update-card",
        "--out", str(tmp_path / "out"),
    ]) == 0
    figures = json.loads((tmp_path / "out/eyes.json").read_text())
    assert figures == {
        "faces": 3, "found": 2, "nme": 0.02, "centres": 0.02, "failures": 0.33333,
        "auc": round((1 + 0.6) / 3, 5), **models,
    }
    assert read_card(weights, "keypointer", "tiny").metrics["eyes"]["auc"] == figures["auc"]


@pytest.mark.parametrize(
    ("boxes", "own"),
    [
        (np.zeros((0, 4)), None),
        (np.array([[0, 0, 4, 4], [0, 0, 10, 11], [0, 0, 10, 12]]), 1),      # the points reach from 0 to 10
        (np.array([[0, 0, 4, 5]]), None),                                  # exactly a fifth
        (np.array([[0, 0, 4, 5.1]]), 0),
    ],
)
def test_box_of_points(boxes: np.ndarray, own: int | None) -> None:
    assert box_of_points(boxes, np.array([[0.0, 10.0], [10.0, 0.0], [5.0, 5.0]])) == own


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[[1.0, 2.0]] * 5], "68 pairs"),
        ([face_points(10).tolist()], "none of the 1 faces is found"),
    ],
)
def test_wrong_points_are_refused(tmp_path: Path, weights: Path, points, message: str, capsys) -> None:
    image = encoded(np.zeros((32, 32, 3), np.uint8))
    pq.write_table(pa.table({"image": [image], "points": points}), tmp_path / "eyes.parquet")
    assert main(["eyes", str(tmp_path / "eyes.parquet"), "--weights", str(weights), "--keypointer", "tiny"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
