"""The fourth stage: cut an upright 112×112 crop out of every chip."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipeline import geometry
from pipeline.batch import FaceBatch
from pipeline.geometry import CROP_PX, AlignmentTemplate


class AlignedFace(NamedTuple):
    """An upright face: crop (112, 112, 3) uint8; whether the eyes were used; the roll that was removed."""

    crop: np.ndarray
    align_ok: bool
    roll_deg: float


def align_chip(
    chip: np.ndarray,
    chip_to_image: np.ndarray,
    box_xyxy: np.ndarray,
    eye_points: np.ndarray,
    template: AlignmentTemplate,
) -> AlignedFace:
    """Cut the upright face out of one chip, by its eyes; by its box alone if the eyes are implausible.

    chip: (s, s, 3) uint8; chip_to_image: (2, 3); box_xyxy: (4,) and eye_points: (12, 2), image pixels.
    Outside the chip its edge pixels are repeated.
    """
    left_eye, right_eye = geometry.eye_centres(eye_points)
    align_ok = bool(np.isfinite(eye_points).all()) and geometry.eyes_plausible(box_xyxy, left_eye, right_eye)
    if align_ok:
        image_to_crop = geometry.align_matrix(box_xyxy, left_eye, right_eye, template)
    else:
        # With --rotate-retry the chip is upright but the photo is not, so the box is taken without a turn in the chip.
        image_to_chip = geometry.invert(chip_to_image)
        box_chip = geometry.transform_boxes(image_to_chip, np.asarray(box_xyxy)[None])[0]
        image_to_crop = geometry.compose(geometry.align_matrix_by_box(box_chip, template), image_to_chip)
    chip_to_crop = geometry.for_opencv(geometry.compose(image_to_crop, chip_to_image))
    crop = cv2.warpAffine(
        chip, chip_to_crop, (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return AlignedFace(crop, align_ok, geometry.turn_deg(image_to_crop))


def sharpness(crop: np.ndarray) -> float:
    """The variance of the Laplacian of the grey crop; low means blurred (Pech-Pacheco et al., 2000)."""
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


class Align:
    """Cut an upright 112×112 crop out of every chip."""

    def __init__(self, template: AlignmentTemplate) -> None:
        self._template = template

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        aligned = [
            align_chip(chip, batch.chip_to_image[i], batch.boxes_xyxy[i], batch.eye_points[i], self._template)
            for i, chip in enumerate(batch.chips)
        ]
        crops = np.array([face.crop for face in aligned], np.uint8).reshape(len(batch), CROP_PX, CROP_PX, 3)
        return batch.with_crops(
            crops,
            np.array([face.align_ok for face in aligned], bool),
            np.array([face.roll_deg for face in aligned], np.float32),
            np.array([sharpness(crop) for crop in crops], np.float32),
        )
