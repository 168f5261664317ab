import numpy as np
import pytest

from pipeline.batch import FaceBatch, ImageRecord
from pipeline.stages.keypoint import Keypoint


def batch_of(sides, to_image):
    """Faces of boxes 30 px high in the image, with chips of these sides."""
    n = len(sides)
    return FaceBatch(
        (ImageRecord("a"),), np.array([n]), np.tile(np.array([10, 20, 30, 50], np.float32), (n, 1)),
        np.zeros(n, np.float32), chips=tuple(np.zeros((side, side, 3), np.uint8) for side in sides),
        chip_to_image=np.array([to_image] * n, np.float64).reshape(n, 2, 3),
    )


def middle_of_chip(chips):
    """Twelve points per face, point k at k pixels to the right of the chip's middle; spreads of 1.5 and 3 px."""
    points = [[[chip.shape[1] / 2 + k, chip.shape[0] / 2] for k in range(12)] for chip in chips]
    return np.array(points, np.float32).reshape(len(chips), 12, 2), np.tile(np.float32([1.5, 3]), (len(chips), 1))


@pytest.mark.parametrize("sides", [[], [10], [10, 256, 40]])
def test_points_are_in_image_pixels_in_the_same_order(sides):
    eye_points = Keypoint(middle_of_chip)(batch_of(sides, [[2.0, 0, 100], [0, 3.0, 50]])).eye_points
    assert eye_points.shape == (len(sides), 12, 2) and eye_points.dtype == np.float32
    for points, side in zip(eye_points, sides, strict=True):
        assert np.allclose(points[:, 0], 100 + 2 * (side / 2 + np.arange(12)))
        assert np.allclose(points[:, 1], 50 + 3 * side / 2)


def test_the_eyes_of_an_upside_down_face_are_not_sorted():
    """Past ±90° the left eye is on the right of the photo; sorting by x would align the face upside down."""
    def upside_down(chips):
        return np.array([[[30.0, 10.0]] * 6 + [[10.0, 10.0]] * 6], np.float32), np.full((1, 2), np.nan, np.float32)

    found = Keypoint(upside_down)(batch_of([40], [[1.0, 0, 0], [0, 1.0, 0]]))
    assert found.eye_points[0, [0, 11], 0].tolist() == [30.0, 10.0] and np.isnan(found.eye_spread).all()


@pytest.mark.parametrize(
    ("to_image", "spread"),
    [([[1.0, 0, 0], [0, 1.0, 0]], 0.1), ([[0, -2.0, 0], [2.0, 0, 0]], 0.2)],      # the larger of both eyes, over 30 px
)
def test_the_spread_is_a_share_of_the_longer_box_side(to_image, spread):
    found = Keypoint(middle_of_chip)(batch_of([40, 40], to_image)).eye_spread
    assert found.dtype == np.float32 and np.allclose(found, spread)
