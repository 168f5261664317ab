import cv2
import numpy as np
import pytest

from pipeline import geometry
from pipeline.batch import FaceBatch, ImageRecord
from pipeline.geometry import EYES_MID_XY, AlignmentTemplate
from pipeline.stages.align import Align, align_chip, sharpness

TEMPLATE = AlignmentTemplate(box_side_px=110.0, eyes_in_box_xy=(0.5, 0.4))


def eyes(left, right):
    """Twelve points around two eye centres."""
    ring = np.array([[-3, 0], [-1, -1], [1, -1], [3, 0], [1, 1], [-1, 1]], np.float32)
    return np.concatenate([ring + left, ring + right]).astype(np.float32)


def face_turned_by(roll_deg, size=200):
    """A chip of a dark face with a red left and a green right eye, turned clockwise; its box and its eye centres."""
    centre = np.array([size / 2, size / 2])
    angle = np.radians(roll_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    left, right = (turn @ offset + centre for offset in (np.array([-35.24, 0.0]), np.array([35.24, 0.0])))
    chip = np.zeros((size, size, 3), np.uint8)
    cv2.circle(chip, tuple(int(v) for v in left), 9, (255, 0, 0), -1)
    cv2.circle(chip, tuple(int(v) for v in right), 9, (0, 255, 0), -1)
    chip.flags.writeable = False
    box = np.array([-10, 12, 210, 232], np.float32)      # 220 px: the box asks for scale 1/2, as the eyes do
    return chip, box, left, right


@pytest.mark.parametrize("roll_deg", [0, 20, -45, 90, 180, -170])
def test_the_crop_is_upright_whatever_the_roll(roll_deg):
    chip, box, left, right = face_turned_by(roll_deg)
    crop, align_ok, turn = align_chip(chip, geometry.IDENTITY, box, eyes(left, right), TEMPLATE)
    assert align_ok and turn == pytest.approx(roll_deg, abs=1e-4)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
    assert crop[51, 38, 0] > 200 and crop[51, 38, 1] < 50      # the red left eye, at (38.3, 51.7)
    assert crop[51, 73, 1] > 200 and crop[51, 73, 0] < 50


@pytest.mark.parametrize(
    "points", [eyes((95, 90), (95.1, 90)), eyes((-50, 90), (-20, 90)), np.full((12, 2), np.nan, np.float32)]
)
def test_implausible_eyes_fall_back_to_the_box(points):
    chip, *_ = face_turned_by(0)
    box = np.array([45, 40, 155, 150], np.float32)
    crop, align_ok, turn = align_chip(chip, geometry.IDENTITY, box, points, TEMPLATE)
    assert not align_ok and turn == 0.0
    # Scale 1, and the assumed middle between the eyes, (100, 84), moves to (55.91, 51.60): a shift.
    shift_x, shift_y = 100 - EYES_MID_XY[0], 84 - EYES_MID_XY[1]
    expected = cv2.getRectSubPix(chip, (112, 112), (shift_x + 55.5, shift_y + 55.5))
    assert np.abs(crop.astype(int) - expected.astype(int)).max() <= 3


def test_the_fallback_of_a_turned_photo_is_upright_in_the_chip():
    chip, box, *_ = face_turned_by(0)
    turned_to_image = geometry.quarter_turn(90, 200, 200)
    box_image = geometry.transform_boxes(turned_to_image, box[None])[0]
    plain = align_chip(chip, geometry.IDENTITY, box, np.full((12, 2), np.nan), TEMPLATE)
    turned = align_chip(chip, turned_to_image, box_image, np.full((12, 2), np.nan), TEMPLATE)
    assert np.array_equal(plain.crop, turned.crop)
    assert turned.roll_deg == pytest.approx(-90)       # in the photo the face lies on its side


def test_sharpness_is_lower_for_blurred_faces():
    noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    assert sharpness(np.full((112, 112, 3), 9, np.uint8)) == 0.0
    assert sharpness(noise) > 4 * sharpness(cv2.GaussianBlur(noise, (7, 7), 2)) > 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batches(count):
    chip, box, left, right = face_turned_by(0)
    batch = FaceBatch(
        (ImageRecord("a"),), np.array([count]), np.tile(box, (count, 1)), np.ones(count, np.float32),
        chips=(chip,) * count, chip_to_image=np.tile(geometry.IDENTITY, (count, 1, 1)),
        eye_points=np.tile(eyes(left, right), (count, 1, 1)),
    )
    aligned = Align(TEMPLATE)(batch)
    assert aligned.crops.shape == (count, 112, 112, 3) and aligned.align_ok.all()
    assert aligned.roll_deg.shape == aligned.sharpness.shape == (count,) and aligned.chips == ()
