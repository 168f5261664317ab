import numpy as np
import pytest

from pipeline.batch import FaceBatch, ImageRecord
from pipeline.stages.keypoint import Keypoint


def middle_of_chip(chips):
    """Twelve points per face, point k at k pixels to the right of the chip's middle."""
    points = [[[chip.shape[1] / 2 + k, chip.shape[0] / 2] for k in range(12)] for chip in chips]
    return np.array(points, np.float32).reshape(len(chips), 12, 2)


@pytest.mark.parametrize("sides", [[], [10], [10, 256, 40]])
def test_points_are_in_image_pixels_in_the_same_order(sides):
    n = len(sides)
    to_image = np.array([[[2.0, 0, 100], [0, 3.0, 50]]] * n).reshape(n, 2, 3)
    batch = FaceBatch(
        (ImageRecord("a"),), np.array([n]), np.zeros((n, 4), np.float32), np.zeros(n, np.float32),
        chips=tuple(np.zeros((side, side, 3), np.uint8) for side in sides), chip_to_image=to_image,
    )
    eye_points = Keypoint(middle_of_chip)(batch).eye_points
    assert eye_points.shape == (n, 12, 2) and eye_points.dtype == np.float32
    for points, side in zip(eye_points, sides, strict=True):
        assert np.allclose(points[:, 0], 100 + 2 * (side / 2 + np.arange(12)))
        assert np.allclose(points[:, 1], 50 + 3 * side / 2)


def test_the_eyes_of_an_upside_down_face_are_not_sorted():
    """Past ±90° the left eye is on the right of the photo; sorting by x would align the face upside down."""
    def upside_down(chips):
        return np.array([[[30.0, 10.0]] * 6 + [[10.0, 10.0]] * 6] * len(chips), np.float32)

    batch = FaceBatch(
        (ImageRecord("a"),), np.array([1]), np.zeros((1, 4), np.float32), np.zeros(1, np.float32),
        chips=(np.zeros((40, 40, 3), np.uint8),), chip_to_image=np.array([[[1.0, 0, 0], [0, 1.0, 0]]]),
    )
    assert Keypoint(upside_down)(batch).eye_points[0, [0, 11], 0].tolist() == [30.0, 10.0]
