"""The fourth stage: cut an upright 112×112 crop out of every chip."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipeline import geometry
from pipeline.batch import ChipStack, FaceBatch
from pipeline.geometry import CROP_PX, AlignmentTemplate


class Alignment(NamedTuple):
    """How faces are turned upright: `image_to_crop` (n, 2, 3); whether the eyes were used, (n,) bool."""

    image_to_crop: np.ndarray
    align_ok: np.ndarray


class AlignedFace(NamedTuple):
    """An upright face: crop (112, 112, 3) uint8; whether the eyes were used; the roll that was removed."""

    crop: np.ndarray
    align_ok: bool
    roll_deg: float


def alignment(
    chip_to_image: np.ndarray, boxes_xyxy: np.ndarray, eye_points: np.ndarray, template: AlignmentTemplate
) -> Alignment:
    """How to turn faces upright by their eyes; by their boxes alone where the eyes are implausible.

    chip_to_image: (n, 2, 3); boxes_xyxy: (n, 4) and eye_points: (n, 12, 2), image pixels.
    """
    left, right = geometry.eye_centres(eye_points)
    align_ok = np.isfinite(eye_points).all(axis=(1, 2)) & geometry.eyes_plausible(boxes_xyxy, left, right)
    image_to_crop = geometry.align_matrix(boxes_xyxy, left, right, template)
    # With --rotate-retry the chip is upright but the photo is not, so the box is taken without a turn in the chip.
    image_to_chip = geometry.invert(chip_to_image[~align_ok])
    boxes_chip = geometry.transform_boxes(image_to_chip, boxes_xyxy[~align_ok])
    by_box = geometry.align_matrix_by_box(boxes_chip, template)
    image_to_crop[~align_ok] = geometry.compose(by_box, image_to_chip)
    return Alignment(image_to_crop, align_ok)


def align_chip(
    chip: np.ndarray,
    chip_to_image: np.ndarray,
    box_xyxy: np.ndarray,
    eye_points: np.ndarray,
    template: AlignmentTemplate,
) -> AlignedFace:
    """Cut the upright face out of one chip, by its eyes; by its box alone if the eyes are implausible.

    chip: (s, s, 3) uint8; chip_to_image: (2, 3); box_xyxy: (4,) and eye_points: (12, 2), image pixels.
    """
    how = alignment(chip_to_image[None], np.asarray(box_xyxy)[None], np.asarray(eye_points)[None], template)
    (image_to_crop,), (align_ok,) = how
    crop = warp(chip, geometry.compose(image_to_crop, chip_to_image))
    return AlignedFace(crop, bool(align_ok), float(geometry.turn_deg(image_to_crop)))


def warp(chip: np.ndarray, chip_to_crop: np.ndarray) -> np.ndarray:
    """The crop (112, 112, 3) uint8 by a 2×3 matrix. Outside the chip its edge pixels are repeated."""
    return cv2.warpAffine(
        chip, geometry.for_opencv(chip_to_crop), (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def sharpness(crop: np.ndarray) -> float:
    """The variance of the Laplacian of the grey crop; low means blurred (Pech-Pacheco et al., 2000)."""
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


class Align:
    """Cut an upright 112×112 crop out of every chip."""

    def __init__(self, template: AlignmentTemplate) -> None:
        self._template = template

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        how = alignment(batch.chip_to_image, batch.boxes_xyxy, batch.eye_points, self._template)
        chip_to_crop = geometry.compose(how.image_to_crop, batch.chip_to_image)
        if isinstance(batch.chips, ChipStack):
            crops, sharp = batch.chips.aligned(chip_to_crop)
        else:
            crops = np.empty((len(batch), CROP_PX, CROP_PX, 3), np.uint8)
            for crop, chip, matrix in zip(crops, batch.chips, chip_to_crop, strict=True):
                crop[:] = warp(chip, matrix)
            sharp = np.array([sharpness(crop) for crop in crops], np.float32)
        return batch.with_crops(crops, how.align_ok, geometry.turn_deg(how.image_to_crop).astype(np.float32), sharp)
