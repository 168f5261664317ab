import math

import numpy as np
import pytest

from pipeline import geometry
from pipeline.geometry import EYE_DISTANCE_PX, EYES_MID_XY, AlignmentTemplate

TEMPLATE = AlignmentTemplate(box_side_px=110.0, eyes_in_box_xy=(0.5, 0.4))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), (-3, -3, 16)),
        ((100, 200, 110, 220), (89, 194, 32)),          # the longer side counts
        ((0.0, 0.0, 0.2, 0.2), (0, 0, 1)),              # never empty
    ],
)
def test_chip_square(box, expected):
    assert geometry.chip_square(np.array(box, np.float32)) == expected


def test_invert_and_compose():
    matrix = np.array([[0.0, -2.0, 5.0], [2.0, 0.0, 7.0]])
    assert np.allclose(geometry.compose(geometry.invert(matrix), matrix), geometry.IDENTITY)
    twice = geometry.compose(geometry.scale_shift((2, 3), (1, 1)), geometry.scale_shift((1, 1), (10, 20)))
    assert np.allclose(geometry.transform(twice, np.array([[1.0, 1.0]])), [[23, 64]])


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
def test_quarter_turn_maps_every_pixel_back(rotation_deg):
    picture = np.arange(5 * 3).reshape(3, 5)                 # width 5, height 3
    turned = np.rot90(picture, -(rotation_deg // 90))
    back = geometry.quarter_turn(rotation_deg, width=5, height=3)
    for y, x in np.ndindex(turned.shape):
        column, row = np.floor(geometry.transform(back, np.array([[x + 0.5, y + 0.5]]))[0]).astype(int)
        assert turned[y, x] == picture[row, column]


def test_quarter_turn_refuses_other_angles():
    with pytest.raises(ValueError, match="got 45"):
        geometry.quarter_turn(45, 1, 1)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (np.zeros((0, 4), np.float32), np.zeros((0, 4))),
        (np.array([[1, 2, 3, 5]], np.float32), [[2, 7, 5, 9]]),      # turned by 90°: x = y', y = 10 − x'
    ],
)
def test_transform_boxes_stay_upright(boxes, expected):
    assert np.array_equal(geometry.transform_boxes(geometry.quarter_turn(90, 10, 10), boxes), expected)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((0, 0), (10, 0), 0.0),
        ((0, 0), (10, 10), 45.0),         # the right eye is lower: turned clockwise
        ((0, 0), (0, 10), 90.0),
        ((0, 0), (-10, 0), 180.0),        # upside down is +180, never −180
        ((0, 0), (-10, -0.0), 180.0),
        ((0, 0), (0, -10), -90.0),
    ],
)
def test_roll(left, right, expected):
    assert geometry.roll_deg(np.array(left), np.array(right)) == pytest.approx(expected)


def rotate(points, degrees, centre):
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (np.asarray(points, float) - centre) @ turn.T + centre


@pytest.mark.parametrize("roll", [0, 30, 90, 135, 180, -120])
def test_aligned_eyes_are_level_and_in_place(roll):
    """Eyes and box ask for the same scale here, so the eyes land exactly on the template."""
    centre = np.array([200.0, 150.0])
    left, right = rotate([[200 - EYE_DISTANCE_PX, 150], [200 + EYE_DISTANCE_PX, 150]], roll, centre)
    box = np.array([200 - 110, 150 - 88, 200 + 110, 150 + 132], np.float32)     # 220 px for 110: scale ½
    matrix = geometry.align_matrix(box, left, right, TEMPLATE)
    eyes = geometry.transform(matrix, np.array([left, right]))
    half = EYE_DISTANCE_PX / 2
    expected = [[EYES_MID_XY[0] - half, EYES_MID_XY[1]], [EYES_MID_XY[0] + half, EYES_MID_XY[1]]]
    assert np.allclose(eyes, expected, atol=1e-6)
    assert geometry.turn_deg(matrix) == pytest.approx(roll, abs=1e-6)


@pytest.mark.parametrize(
    ("eye_distance", "scale"),
    [
        (EYE_DISTANCE_PX, 1.0),            # eyes and box agree on 1
        (EYE_DISTANCE_PX / 4, 1.0),        # a profile: the eyes ask for 4, the box limits it to 1
        (EYE_DISTANCE_PX * 4, 0.5),        # eyes ask for ¼: √(1 · ¼)
    ],
)
def test_scale_is_bounded_by_the_box(eye_distance, scale):
    box = np.array([0, 0, 110, 110], np.float32)
    matrix = geometry.align_matrix(box, np.array([50, 44]), np.array([50 + eye_distance, 44]), TEMPLATE)
    assert math.sqrt(np.linalg.det(matrix[:, :2])) == pytest.approx(scale)


def test_alignment_by_box_puts_the_assumed_eyes_in_place():
    matrix = geometry.align_matrix_by_box(np.array([10, 20, 120, 130], np.float32), TEMPLATE)
    assert np.allclose(geometry.transform(matrix, np.array([[65.0, 64.0]])), [EYES_MID_XY])
    assert matrix[0, 0] == pytest.approx(1.0) and geometry.turn_deg(matrix) == 0.0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((35, 40), (65, 40), True),
        ((50, 40), (51, 40), False),       # 1% of the box
        ((5, 40), (95, 40), False),        # 90% of it
        ((-60, 40), (0, 40), False),       # their middle is outside
        ((50, 30), (50, 80), True),        # a face that lies on its side
    ],
)
def test_plausible_eyes(left, right, expected):
    box = np.array([0, 0, 100, 100], np.float32)
    assert geometry.eyes_plausible(box, np.array(left), np.array(right)) == expected


def test_opencv_convention():
    """Scaling by 2 moves a pixel centre from 0.5 to 1.0; in OpenCV that is from 0 to 0.5."""
    matrix = geometry.for_opencv(geometry.scale_shift((2.0, 2.0), (0.0, 0.0)))
    assert np.allclose(matrix, [[2, 0, 0.5], [0, 2, 0.5]])
