"""Where faces are: letterbox, chips, and the similarity transform that turns a face upright.

All transforms are 2×3 float64 matrices acting on column vectors (x, y, 1), in pixels. A pixel's centre lies on whole
numbers plus one half, so the image spans (0, 0) to (width, height) and scaling by s is just x·s; OpenCV puts centres
on whole numbers, hence `for_opencv`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CROP_PX = 112                         # side of an aligned face: the size ArcFace networks take (Deng et al., 2019)
EYES_MID_XY = (55.91, 51.60)          # middle of the eyes in the usual 112×112 ArcFace template
EYE_DISTANCE_PX = 35.24               # between the eye centres (38.29, 51.70) and (73.53, 51.50) of that template
CHIP_BOX_RATIO = 1.6                  # side of a chip over the longer side of its box
CHIP_MAX_PX = 256


@dataclass(frozen=True, slots=True)
class AlignmentTemplate:
    """How a detector's boxes relate to the 112×112 template; calibrated per detector by `jobs.calibrate_alignment`.

    box_side_px: length that the longer box side takes in the crop on frontal faces.
    eyes_in_box_xy: where the middle of the eyes lies in the box, as fractions of its width and height; only used for
        faces whose eyes are not believable.
    """

    box_side_px: float = 110.0
    eyes_in_box_xy: tuple[float, float] = (0.5, 0.40)


def chip_square(box_xyxy: np.ndarray) -> tuple[int, int, int]:
    """The square cut out around a face: whole-pixel left, top and side, 1.6 × the longer box side, same centre."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    side = max(1, round(CHIP_BOX_RATIO * max(x2 - x1, y2 - y1)))
    return math.floor((x1 + x2 - side) / 2 + 0.5), math.floor((y1 + y2 - side) / 2 + 0.5), side


def scale_shift(scale_xy: tuple[float, float], shift_xy: tuple[float, float]) -> np.ndarray:
    """The 2×3 matrix of p ↦ scale · p + shift, axis by axis."""
    return np.array([[scale_xy[0], 0.0, shift_xy[0]], [0.0, scale_xy[1], shift_xy[1]]], np.float64)


IDENTITY = scale_shift((1.0, 1.0), (0.0, 0.0))


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The 2×3 matrix that applies `inner` first, then `outer`."""
    return outer @ np.vstack([inner, [0.0, 0.0, 1.0]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a 2×3 matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform(matrices: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    """Apply one 2×3 matrix, or one per leading index, to points of shape (..., k, 2)."""
    return np.einsum("...ij,...kj->...ki", matrices[..., :2], points_xy) + matrices[..., None, :, 2]


def transform_boxes(matrix: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) under a 2×3 matrix that maps axes to axes (scales, shifts, quarter turns)."""
    corners = transform(matrix, boxes_xyxy.reshape(-1, 2, 2).astype(np.float64))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def quarter_turn(rotation_deg: int, width: int, height: int) -> np.ndarray:
    """From pixels of an image turned clockwise by 0, 90, 180 or 270° back to the image, which is width × height."""
    match rotation_deg:
        case 0:
            return IDENTITY
        case 90:      # what was at the bottom left is now at the top left
            return np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, height]])
        case 180:
            return np.array([[-1.0, 0.0, width], [0.0, -1.0, height]])
        case 270:
            return np.array([[0.0, -1.0, width], [1.0, 0.0, 0.0]])
    raise ValueError(f"rotation_deg must be 0, 90, 180 or 270, got {rotation_deg}")


def for_opencv(matrix: np.ndarray) -> np.ndarray:
    """The same transform for cv2.warpAffine, whose pixel centres lie on whole numbers."""
    to_corners, to_centres = scale_shift((1.0, 1.0), (0.5, 0.5)), scale_shift((1.0, 1.0), (-0.5, -0.5))
    return compose(to_centres, compose(matrix, to_corners))


def eye_centres(eye_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right eye centre, each (..., 2): the means of points 0–5 and 6–11 of (..., 12, 2)."""
    return eye_points[..., :6, :].mean(axis=-2), eye_points[..., 6:, :].mean(axis=-2)


def roll_deg(left_eye_xy: np.ndarray, right_eye_xy: np.ndarray) -> np.ndarray:
    """How far the line of the eyes is turned, in (−180, 180], positive clockwise on screen; shape (...)."""
    delta = np.asarray(right_eye_xy, np.float64) - np.asarray(left_eye_xy, np.float64)
    degrees = np.degrees(np.arctan2(delta[..., 1], delta[..., 0]))
    return np.where(degrees <= -180.0, 180.0, degrees)


def turn_deg(image_to_crop: np.ndarray) -> float:
    """The roll that a 2×3 similarity takes out, in (−180, 180], positive clockwise on screen."""
    degrees = math.degrees(math.atan2(image_to_crop[0, 1], image_to_crop[0, 0]))
    return 180.0 if degrees <= -180.0 else degrees


def eyes_believable(box_xyxy: np.ndarray, left_eye_xy: np.ndarray, right_eye_xy: np.ndarray) -> bool:
    """Whether two eye centres can belong to the face in the box.

    Their distance must lie between 5% and 80% of the longer box side (a profile has one eye behind the other, hence
    the low bound) and their middle inside the box.
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

    The line of the eyes becomes level and their middle comes to `EYES_MID_XY`. The scale is
    √(s_box · min(s_eyes, s_box)): two eyes alone blow a face in profile up, the box alone is shaky.
    """
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    s_box = template.box_side_px / max(x2 - x1, y2 - y1)
    s_eyes = EYE_DISTANCE_PX / max(math.dist(left_eye_xy, right_eye_xy), 1e-6)
    middle = (np.asarray(left_eye_xy, np.float64) + np.asarray(right_eye_xy, np.float64)) / 2
    roll = math.radians(float(roll_deg(left_eye_xy, right_eye_xy)))
    return _similarity(math.sqrt(s_box * min(s_eyes, s_box)), roll, middle)


def align_matrix_by_box(box_xyxy: np.ndarray, template: AlignmentTemplate) -> np.ndarray:
    """The crop of a face whose eyes are not believable: by the box alone, not turned. A 2×3 similarity."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    fraction_x, fraction_y = template.eyes_in_box_xy
    middle = np.array([x1 + fraction_x * (x2 - x1), y1 + fraction_y * (y2 - y1)])
    return _similarity(template.box_side_px / max(x2 - x1, y2 - y1), 0.0, middle)


def _similarity(scale: float, roll_rad: float, middle_xy: np.ndarray) -> np.ndarray:
    """Scale, turn back by roll_rad, and bring middle_xy to `EYES_MID_XY`."""
    cos, sin = scale * math.cos(roll_rad), scale * math.sin(roll_rad)
    linear = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([linear, np.array(EYES_MID_XY) - linear @ middle_xy])
