"""The geometry of faces: chips, 2×3 transforms, and the similarity transform that turns a face upright.

All transforms are 2×3 float64 matrices on column vectors (x, y, 1), in pixels. The centre of the first pixel is
(0.5, 0.5), so an image spans (0, 0) to (width, height) and scaling by s is x·s. In OpenCV it is (0, 0): `for_opencv`
converts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CROP_PX = 112                         # side of an aligned face, the input of ArcFace networks (Deng et al., 2019)
EYES_MID_XY = (55.91, 51.60)          # middle between the eyes in the usual 112×112 ArcFace template
EYE_DISTANCE_PX = 35.24               # distance of that template's eye centres, (38.29, 51.70) and (73.53, 51.50)
CHIP_BOX_RATIO = 1.6                  # side of a chip, as a multiple of the longer side of its box
CHIP_MAX_PX = 256


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
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    side = max(1, round(CHIP_BOX_RATIO * max(x2 - x1, y2 - y1)))
    return math.floor((x1 + x2 - side) / 2 + 0.5), math.floor((y1 + y2 - side) / 2 + 0.5), side


def scale_shift(scale_xy: tuple[float, float], shift_xy: tuple[float, float]) -> np.ndarray:
    """The 2×3 matrix that maps p to scale · p + shift, per axis."""
    return np.array([[scale_xy[0], 0.0, shift_xy[0]], [0.0, scale_xy[1], shift_xy[1]]], np.float64)


IDENTITY = scale_shift((1.0, 1.0), (0.0, 0.0))


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The 2×3 matrix that applies `inner` first, then `outer`."""
    composed: np.ndarray = outer @ np.vstack([inner, [0.0, 0.0, 1.0]])
    return composed


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a 2×3 matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform(matrices: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """Apply one 2×3 matrix to points (..., k, 2), or one matrix per leading index."""
    moved: np.ndarray = np.einsum("...ij,...kj->...ki", matrices[..., :2], points_xy) + matrices[..., None, :, 2]
    return moved


def transform_boxes(matrix: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Apply a 2×3 matrix of scales, shifts and quarter turns to boxes (n, 4)."""
    corners = transform(matrix, boxes_xyxy.reshape(-1, 2, 2).astype(np.float64))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


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


def turn_deg(image_to_crop: np.ndarray) -> float:
    """The roll that a 2×3 similarity removes, in (−180, 180], positive clockwise on screen."""
    degrees = math.degrees(math.atan2(image_to_crop[0, 1], image_to_crop[0, 0]))
    return 180.0 if degrees <= -180.0 else degrees


def eyes_plausible(box_xyxy: np.ndarray, left_eye_xy: np.ndarray, right_eye_xy: np.ndarray) -> bool:
    """Whether two eye centres can belong to the face in the box.

    Their distance must be 5% to 80% of the longer box side, and their middle inside the box. The lower bound is small
    because in a profile one eye is behind the other.
    """
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    distance = math.dist(left_eye_xy, right_eye_xy)
    mid_x, mid_y = (np.asarray(left_eye_xy, np.float64) + np.asarray(right_eye_xy, np.float64)) / 2
    longer = max(x2 - x1, y2 - y1)
    return bool(0.05 * longer <= distance <= 0.8 * longer and x1 <= mid_x <= x2 and y1 <= mid_y <= y2)


def align_matrix(
    box_xyxy: np.ndarray, left_eye_xy: np.ndarray, right_eye_xy: np.ndarray, template: AlignmentTemplate
) -> np.ndarray:
    """From image pixels to the upright 112×112 crop, a 2×3 similarity.

    The eyes become level and their middle moves to `EYES_MID_XY`. The scale is √(s_box · min(s_eyes, s_box)): the eye
    distance alone makes profiles too large, the box alone is noisy.
    """
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    s_box = template.box_side_px / max(x2 - x1, y2 - y1)
    s_eyes = EYE_DISTANCE_PX / max(math.dist(left_eye_xy, right_eye_xy), 1e-6)
    middle = (np.asarray(left_eye_xy, np.float64) + np.asarray(right_eye_xy, np.float64)) / 2
    roll = math.radians(float(roll_deg(left_eye_xy, right_eye_xy)))
    return _similarity(math.sqrt(s_box * min(s_eyes, s_box)), roll, middle)


def align_matrix_by_box(box_xyxy: np.ndarray, template: AlignmentTemplate) -> np.ndarray:
    """From image pixels to the crop by the box alone, without a turn, for implausible eyes. A 2×3 similarity."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    fraction_x, fraction_y = template.eyes_in_box_xy
    middle = np.array([x1 + fraction_x * (x2 - x1), y1 + fraction_y * (y2 - y1)])
    return _similarity(template.box_side_px / max(x2 - x1, y2 - y1), 0.0, middle)


def _similarity(scale: float, roll_rad: float, middle_xy: np.ndarray) -> np.ndarray:
    """Scale, turn by −roll_rad, and move middle_xy to `EYES_MID_XY`."""
    cos, sin = scale * math.cos(roll_rad), scale * math.sin(roll_rad)
    linear = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([linear, np.array(EYES_MID_XY) - linear @ middle_xy])
