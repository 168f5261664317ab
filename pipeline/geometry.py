"""The geometry of faces: chips, 2×3 transforms, and the similarity transform that turns a face upright.

All transforms are 2×3 float64 matrices on column vectors (x, y, 1), in pixels. The centre of the first pixel is
(0.5, 0.5), so an image spans (0, 0) to (width, height) and scaling by s is x·s. In OpenCV it is (0, 0): `for_opencv`
converts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CROP_PX = 112                         # side of an aligned face, the input of ArcFace networks (Deng et al., 2019)
EYES_MID_XY = (55.91, 51.60)          # middle between the eyes in the usual 112×112 ArcFace template
EYE_DISTANCE_PX = 35.24               # distance of that template's eye centres, (38.29, 51.70) and (73.53, 51.50)
CHIP_BOX_RATIO = 1.6                  # side of a chip, as a multiple of the longer side of its box
CHIP_MAX_PX = 256
LETTERBOX_GREY = 114                  # the border around an image in YOLO's training
FIVE = 5                              # points of a face that a detector may give: eyes, nose, mouth corners
MOST_SPREAD = 0.1                     # of eyes to rely on, in longer box sides: a third of the distance of the eyes
MOST_APART = 0.08                     # of two sources that agree: the middles of their eyes, in longer box sides
MOST_TURNED_DEG = 20.0                # and the angle between the lines of their eyes
DETECTOR_SPREAD = 0.035               # of the middle of a detector's eyes, as `eye_spread`; chosen on faces in the wild
AREA_BELOW = 0.6                      # smaller scales need averages; from here on interpolation has the same AP, sooner


@dataclass(frozen=True, slots=True)
class AlignmentTemplate:
    """How a detector's boxes relate to the 112×112 crop; `jobs.calibrate_alignment` measures it per detector.

    box_side_px: length of the longer box side in the crop, for frontal faces.
    eyes_in_box_xy: the middle between the eyes as fractions of the box's width and height; used only where the eye
        points are implausible.
    """

    box_side_px: float = 110.0
    eyes_in_box_xy: tuple[float, float] = (0.5, 0.40)


def chip_square(box_xyxy: np.ndarray) -> tuple[int, int, int]:
    """The square of a face's chip in whole pixels: left, top, side. Side: 1.6 × the longer box side; same centre."""
    left, top, side = chip_squares(box_xyxy)
    return int(left), int(top), int(side)


def chip_squares(boxes_xyxy: np.ndarray) -> np.ndarray:
    """The squares of the chips of boxes (..., 4): left, top, side, in whole pixels; (..., 3) int64."""
    boxes = np.asarray(boxes_xyxy, np.float64)
    first, last = boxes[..., :2], boxes[..., 2:]
    side = np.maximum(1, np.rint(CHIP_BOX_RATIO * (last - first).max(axis=-1)))[..., None]
    return np.concatenate([np.floor((first + last - side) / 2 + 0.5), side], axis=-1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image lies, scaled, in the middle of a square canvas; in whole pixels of the canvas.

    averaged: whether it shrinks so much that areas are averaged, not interpolated. scale_xy: image pixels of a canvas
    pixel. shift_xy: where the canvas begins, in image pixels.
    """

    left: int
    top: int
    width: int
    height: int
    averaged: bool
    scale_xy: tuple[float, float]
    shift_xy: tuple[float, float]

    @classmethod
    def of(cls, width: int, height: int, side_px: int) -> Letterbox:
        """The place of an image of this size in a canvas of side_px."""
        scale = side_px / max(width, height)
        new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (side_px - new_width) // 2, (side_px - new_height) // 2
        scale_xy = (width / new_width, height / new_height)
        shift_xy = (-left * scale_xy[0], -top * scale_xy[1])
        return cls(left, top, new_width, new_height, scale < AREA_BELOW, scale_xy, shift_xy)


def scale_shift(scale_xy: tuple[float, float], shift_xy: tuple[float, float]) -> np.ndarray:
    """The 2×3 matrix that maps p to scale · p + shift, per axis."""
    return np.array([[scale_xy[0], 0.0, shift_xy[0]], [0.0, scale_xy[1], shift_xy[1]]], np.float64)


IDENTITY = scale_shift((1.0, 1.0), (0.0, 0.0))


def scale_shifts(scales_xy: np.ndarray, shifts_xy: np.ndarray) -> np.ndarray:
    """The 2×3 matrices of `scale_shift`, from scales and shifts (..., 2); (..., 2, 3)."""
    scales, shifts = np.broadcast_arrays(np.asarray(scales_xy, np.float64), np.asarray(shifts_xy, np.float64))
    matrices = np.zeros((*scales.shape[:-1], 2, 3), np.float64)
    matrices[..., 0, 0], matrices[..., 1, 1] = scales[..., 0], scales[..., 1]
    matrices[..., 2] = shifts
    return matrices


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The 2×3 matrix that applies `inner` first, then `outer`; or one for every leading index."""
    composed: np.ndarray = outer[..., :2] @ inner
    composed[..., 2] += outer[..., 2]
    return composed


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a 2×3 matrix, or of each of several."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def transform(matrices: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """Apply one 2×3 matrix to points (..., k, 2), or one matrix per leading index."""
    moved: np.ndarray = points_xy @ np.swapaxes(matrices[..., :2], -1, -2) + matrices[..., None, :, 2]
    return moved


def transform_boxes(matrix: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Apply a 2×3 matrix of scales, shifts and quarter turns to boxes (n, 4), or one matrix to each."""
    corners = transform(matrix, boxes_xyxy.reshape(-1, 2, 2).astype(np.float64))
    first, second = corners[:, 0], corners[:, 1]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1).astype(np.float32)


def quarter_turn(rotation_deg: int, width: int, height: int) -> np.ndarray:
    """The matrix that undoes a clockwise turn by 0, 90, 180 or 270° of an image of width × height pixels."""
    match rotation_deg:
        case 0:
            return IDENTITY
        case 90:      # the bottom left corner came to the top left
            return np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height]])
        case 180:
            return np.array([[-1.0, 0.0, width], [0.0, -1.0, height]])
        case 270:
            return np.array([[0.0, -1.0, width], [1.0, 0.0, 0.0]])
    raise ValueError(f"rotation_deg must be 0, 90, 180 or 270, got {rotation_deg}")


def no_points(n: int) -> np.ndarray:
    """The five points of n faces of a detector that finds none: (n, 5, 2) float32, NaN."""
    return np.full((n, FIVE, 2), np.nan, np.float32)


def for_opencv(matrix: np.ndarray) -> np.ndarray:
    """The same transform for cv2.warpAffine, where pixel centres are whole numbers."""
    to_corners, to_centres = scale_shift((1.0, 1.0), (0.5, 0.5)), scale_shift((1.0, 1.0), (-0.5, -0.5))
    return compose(to_centres, compose(matrix, to_corners))


def eye_centres(eye_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right eye centre, each (..., 2): the means of points 0–5 and 6–11 of `eye_points` (..., 12, 2)."""
    return eye_points[..., :6, :].mean(axis=-2), eye_points[..., 6:, :].mean(axis=-2)


def roll_deg(left_eye_xy: np.ndarray, right_eye_xy: np.ndarray) -> np.ndarray:
    """The angle of the line between the eyes, in (−180, 180], positive clockwise on screen; shape (...)."""
    delta = np.asarray(right_eye_xy, np.float64) - np.asarray(left_eye_xy, np.float64)
    degrees = np.degrees(np.arctan2(delta[..., 1], delta[..., 0]))
    return np.where(degrees <= -180.0, 180.0, degrees)


def turn_deg(image_to_crop: np.ndarray) -> np.ndarray:
    """The roll that 2×3 similarities (..., 2, 3) remove, in (−180, 180], positive clockwise on screen; shape (...)."""
    degrees = np.degrees(np.arctan2(image_to_crop[..., 0, 1], image_to_crop[..., 0, 0]))
    return np.where(degrees <= -180.0, 180.0, degrees)


def longer_sides(boxes_xyxy: np.ndarray) -> np.ndarray:
    """The longer side of each box (..., 4)."""
    sides: np.ndarray = np.asarray(boxes_xyxy[..., 2:], np.float64) - boxes_xyxy[..., :2]
    return np.asarray(sides.max(axis=-1))


def scales(matrices: np.ndarray) -> np.ndarray:
    """By how much 2×3 similarities (..., 2, 3) enlarge."""
    enlarged: np.ndarray = np.hypot(matrices[..., 0, 0], matrices[..., 1, 0])
    return enlarged


def eyes_plausible(boxes_xyxy: np.ndarray, left_eye_xy: np.ndarray, right_eye_xy: np.ndarray) -> np.ndarray:
    """Whether two eye centres (..., 2) can belong to the face in the box (..., 4); (...) bool. NaN is not plausible.

    Their distance must be 5% to 80% of the longer box side, and their middle inside the box. The lower bound is small
    because in a profile one eye is behind the other.
    """
    first, last = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    distance, middle = _distance_and_middle(left_eye_xy, right_eye_xy)
    longer = longer_sides(boxes_xyxy)
    inside = ((first <= middle) & (middle <= last)).all(axis=-1)
    plausible: np.ndarray = (0.05 * longer <= distance) & (distance <= 0.8 * longer) & inside
    return plausible


class Eyes(NamedTuple):
    """Eye centres (n, 2, 2), left first; whether they can be the face's; whether they can be relied on; both (n,)."""

    centres: np.ndarray
    plausible: np.ndarray
    sure: np.ndarray


def best_eyes(boxes_xyxy: np.ndarray, eyes: np.ndarray, spread: np.ndarray, other: np.ndarray) -> Eyes:
    """The eyes to turn faces by, from two sources: the keypointer's (n, 2, 2), and the detector's `other` (n, 2, 2).

    spread: the keypointer's, (n,) in longer box sides. NaN: a source or a spread is not known. The keypointer's are
    taken: their angle and distance are more often right. But they move towards the middle of the detector's, the more
    the less sure the keypointer is: both middles are averaged by the inverse of their squared spreads. The detector's
    counts less the farther it is away, and nothing from `MOST_APART` on, so that no face jumps. If the keypointer's are
    implausible, the detector's are taken.
    Sure: those of the keypointer, if its spread is small or not known, and the detector does not contradict.
    """
    by_eyes, by_other = (
        np.isfinite(of).all(axis=(1, 2)) & eyes_plausible(boxes_xyxy, of[:, 0], of[:, 1]) for of in (eyes, other)
    )
    apart = other.mean(axis=1) - eyes.mean(axis=1)
    distance = np.linalg.norm(apart, axis=1) / np.maximum(MOST_APART * longer_sides(boxes_xyxy), 1e-6)
    turned = np.abs((roll_deg(other[:, 0], other[:, 1]) - roll_deg(eyes[:, 0], eyes[:, 1]) + 180) % 360 - 180)
    share = spread**2 / (spread**2 + DETECTOR_SPREAD**2) * (1 - distance**2)
    moved = np.where(by_eyes & by_other & (share > 0), share * apart.T, 0.0).T
    averaged = eyes + moved[:, None]
    centres = np.where((by_other & ~by_eyes)[:, None, None], other, averaged)
    sure = by_eyes & ~(spread > MOST_SPREAD) & ((distance <= 1) & (turned <= MOST_TURNED_DEG) | ~by_other)
    return Eyes(centres, by_eyes | by_other, sure)


def align_matrix(
    boxes_xyxy: np.ndarray, left_eye_xy: np.ndarray, right_eye_xy: np.ndarray, template: AlignmentTemplate
) -> np.ndarray:
    """From image pixels to the upright 112×112 crop, a 2×3 similarity for every box (..., 4) and pair of eyes (..., 2).

    The eyes become level and their middle moves to `EYES_MID_XY`. The scale is √(s_box · min(s_eyes, s_box)): the eye
    distance alone makes profiles too large, the box alone is noisy.
    """
    distance, middle = _distance_and_middle(left_eye_xy, right_eye_xy)
    s_box = template.box_side_px / longer_sides(boxes_xyxy)
    s_eyes = EYE_DISTANCE_PX / np.maximum(distance, 1e-6)
    roll = np.radians(roll_deg(left_eye_xy, right_eye_xy))
    return _similarity(np.sqrt(s_box * np.minimum(s_eyes, s_box)), roll, middle)


def align_matrix_by_box(boxes_xyxy: np.ndarray, template: AlignmentTemplate) -> np.ndarray:
    """2×3 similarities from image pixels to the crop by the boxes (..., 4) alone, unturned, for implausible eyes."""
    boxes = np.asarray(boxes_xyxy, np.float64)
    middle = boxes[..., :2] + np.array(template.eyes_in_box_xy) * (boxes[..., 2:] - boxes[..., :2])
    s_box = template.box_side_px / longer_sides(boxes)
    return _similarity(s_box, np.zeros_like(s_box), middle)


def _distance_and_middle(left_xy: np.ndarray, right_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.asarray(left_xy, np.float64), np.asarray(right_xy, np.float64)
    return np.hypot(right[..., 0] - left[..., 0], right[..., 1] - left[..., 1]), (left + right) / 2


def _similarity(scale: np.ndarray, roll_rad: np.ndarray, middle_xy: np.ndarray) -> np.ndarray:
    """Scale, turn by −roll_rad, and move middle_xy to `EYES_MID_XY`."""
    cos, sin = scale * np.cos(roll_rad), scale * np.sin(roll_rad)
    linear = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)
    shift = np.array(EYES_MID_XY)[:, None] - linear @ middle_xy[..., None]
    return np.concatenate([linear, shift], axis=-1)
