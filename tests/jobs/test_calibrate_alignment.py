from __future__ import annotations

import numpy as np
import pytest

from jobs.calibrate_alignment import calibrate, is_frontal


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
def test_the_template_by_medians(boxes, side: float, eyes_xy: tuple[float, float]) -> None:
    template = calibrate(np.stack([face()] * len(boxes)), np.array(boxes, np.float64))
    assert (template.box_side_px, template.eyes_in_box_xy) == (side, eyes_xy)
