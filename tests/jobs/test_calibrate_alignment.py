from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.calibrate_alignment import calibrate, is_frontal, main
from models.store import read_card
from tests.support.evaluation import encoded, tiny_weights, zidane


def face(nose_x: float = 50.0, eye_drop: float = 0.0) -> np.ndarray:
    """68 points: jaw from x 0 to 100, eyes around (30, 40) and (70, 40 + eye_drop), nose tip at (nose_x, 60)."""
    points = np.full((68, 2), 50.0)
    points[0], points[16], points[30] = (0, 50), (100, 50), (nose_x, 60)
    points[36:42], points[42:48] = (30, 40), (70, 40 + eye_drop)
    points.flags.writeable = False
    return points


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (face(), True),
        (face(nose_x=64), True), (face(nose_x=66), False), (face(nose_x=34), False),      # 0.5 ± 0.15 of the way
        (face(eye_drop=10), True), (face(eye_drop=11), False), (face(eye_drop=-11), False),   # tan 15° × 40 = 10.7
    ],
)
def test_frontal_faces(points: np.ndarray, expected: bool) -> None:
    assert is_frontal(points) is expected


@pytest.mark.parametrize(
    ("boxes", "side", "eyes_xy"),
    [
        ([(0, 0, 100, 120)], 105.72, (0.5, 0.3333)),      # 35.24 / 40 × 120; the eyes' middle is (50, 40)
        ([(-10, 0, 110, 100)], 105.72, (0.5, 0.4)),       # the width is the longer side
        ([(0, 0, 100, 120), (0, 0, 100, 100), (0, 0, 100, 999)], 105.72, (0.5, 0.3333)),      # medians
    ],
)
def test_the_template_is_made_of_medians(boxes, side: float, eyes_xy: tuple[float, float]) -> None:
    template = calibrate(np.stack([face()] * len(boxes)), np.array(boxes, np.float64))
    assert (template.box_side_px, template.eyes_in_box_xy) == (side, eyes_xy)


@pytest.mark.parametrize(("nose_x", "code"), [(50.0, 0), (90.0, 2)], ids=["frontal", "profile"])
def test_the_template_is_written_into_the_embedders_cards(nose_x: float, code: int, tmp_path: Path, capsys) -> None:
    weights = tiny_weights(tmp_path / "weights")
    points = face(nose_x) / (100, 60) * (156, 200) + (54, 30)             # in the face's box
    photo = zidane()[50:330, 850:1130]
    faces = pa.table({"image": [encoded(photo)], "points": [points.tolist()]})
    pq.write_table(faces, tmp_path / "faces.parquet")
    command = [str(tmp_path / "faces.parquet"), "--embedder", "tiny", "--weights", str(weights), "--device", "cpu"]
    assert main(command) == code
    written = read_card(weights, "embedder", "tiny").preprocessing.get("alignment", {})
    printed = capsys.readouterr()
    if code:
        assert written == {}
        assert printed.err.startswith("calibrate-alignment: the detector finds no face that looks into the camera")
    else:
        assert written["calibrated_for"] == read_card(weights, "detector", "yolov8n").identity
        assert "from 1 frontal faces of 1" in printed.out and 50 < written["box_side_px"] < 250
