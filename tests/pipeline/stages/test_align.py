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
        eye_points=np.tile(eyes(left, right), (count, 1, 1)), eye_spread=np.full(count, np.nan, np.float32),
    )
    aligned = Align(TEMPLATE, eyes_alone=False)(batch)
    assert aligned.crops.shape == (count, 112, 112, 3) and aligned.align_ok.all()
    assert aligned.roll_deg.shape == aligned.sharpness.shape == (count,) and aligned.chips == ()


def five_at(left, right):
    """The detector's points with these eyes."""
    return np.array([left, right, (0, 0), (0, 0), (0, 0)], np.float32)


def share(spread, moved):
    """The part of the way to the detector's eyes, `moved` pixels away on a face of 220 px."""
    return spread**2 / (spread**2 + 0.035**2) * (1 - (moved / (0.08 * 220)) ** 2)


@pytest.mark.parametrize(
    ("spread", "moved", "turned_deg", "align_ok", "part"),
    [
        (np.nan, None, 0, True, 0),        # one source that says nothing of itself, as version 0.1.0
        (0.02, None, 0, True, 0),          # one source, sure
        (0.2, None, 0, False, 0),          # none sure
        (0.02, 8.0, 10, True, share(0.02, 8.0)),      # they agree
        (np.nan, 8.0, 10, True, 0),
        (0.2, 8.0, 10, False, share(0.2, 8.0)),       # they agree, but the keypointer is unsure
        (0.035, 1.0, 10, True, share(0.035, 1.0)),    # both are as sure: almost half
        (0.2, 17.5, 10, False, share(0.2, 17.5)),     # as far apart as counts: hardly anything
        (0.02, 30.0, 0, False, 0),         # another place
        (0.02, 8.0, 40, False, share(0.02, 8.0)),     # another angle
        (0.02, 0.0, 180, False, 0),        # one of them sees the face upside down
    ],
)
@pytest.mark.parametrize("roll", [0, -135, 180])
def test_two_sources_of_eyes(roll, spread, moved, turned_deg, align_ok, part):
    """Of a face of 220 px: how far the detector's eyes are moved, and turned.

    The crop has the angle and the scale of the keypointer's eyes, which move a part of the way to the detector's.
    """
    chip, box, left, right = face_turned_by(roll)
    middle, turn = (left + right) / 2, np.radians(roll + turned_deg)
    along = 35.24 * np.array([np.cos(turn), np.sin(turn)])
    other = middle + np.array([moved or 0.0, 0.0])
    five = None if moved is None else five_at(other - along, other + along)
    found = align_chip(chip, geometry.IDENTITY, box, eyes(left, right), TEMPLATE, spread, five)
    way = np.array([part * (moved or 0.0), 0.0])
    expected = align_chip(chip, geometry.IDENTITY, box, eyes(left + way, right + way), TEMPLATE)
    assert found.align_ok == align_ok and found.roll_deg == pytest.approx(expected.roll_deg, abs=1e-4)
    assert np.abs(found.crop.astype(int) - expected.crop).max() <= 1
    batch = one_face(chip, box, eyes(left, right), spread, five)
    for eyes_alone, expected_ok in ((False, align_ok), (True, True)):
        assert Align(TEMPLATE, eyes_alone=eyes_alone)(batch).align_ok.tolist() == [expected_ok]


def one_face(chip, box, points, spread, five):
    """A batch of a face."""
    return FaceBatch(
        (ImageRecord("a"),), np.array([1]), box[None], np.ones(1, np.float32), chips=(chip,),
        chip_to_image=geometry.IDENTITY[None], eye_points=points[None], eye_spread=np.array([spread], np.float32),
        points5=geometry.no_points(1) if five is None else five[None],
    )


def test_implausible_eyes_are_replaced_by_those_of_the_detector():
    chip, box, left, right = face_turned_by(30)
    nothing = np.full((12, 2), np.nan, np.float32)
    found = align_chip(chip, geometry.IDENTITY, box, nothing, TEMPLATE, 0.01, five_at(left, right))
    assert not found.align_ok and found.roll_deg == pytest.approx(30, abs=1e-3)
