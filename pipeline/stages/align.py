"""The fourth stage: cut an upright 112×112 crop out of every chip."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipeline import geometry
from pipeline.batch import ChipStack, FaceBatch
from pipeline.geometry import CROP_PX, AlignmentTemplate


class Alignment(NamedTuple):
    """How faces are turned upright: `image_to_crop` (n, 2, 3); whether the eyes can be relied on, (n,) bool."""

    image_to_crop: np.ndarray
    align_ok: np.ndarray


class AlignedFace(NamedTuple):
    """An upright face: crop (112, 112, 3) uint8; whether the eyes can be relied on; the roll that was removed."""

    crop: np.ndarray
    align_ok: bool
    roll_deg: float


def alignment(
    chip_to_image: np.ndarray, boxes_xyxy: np.ndarray, eye_points: np.ndarray, template: AlignmentTemplate,
    eye_spread: np.ndarray | None = None, points5: np.ndarray | None = None,
) -> Alignment:
    """How to turn faces upright, see `geometry.best_eyes`; by their boxes alone where no eyes are plausible.

    chip_to_image: (n, 2, 3); boxes_xyxy: (n, 4), eye_points: (n, 12, 2) and points5: (n, 5, 2), image pixels;
    eye_spread: (n,). None: not known, as NaN.
    """
    spread = np.full(len(eye_points), np.nan) if eye_spread is None else eye_spread
    five = geometry.no_points(len(eye_points)) if points5 is None else points5
    eyes = geometry.best_eyes(boxes_xyxy, np.stack(geometry.eye_centres(eye_points), axis=1), spread, five[:, :2])
    image_to_crop = geometry.align_matrix(boxes_xyxy, eyes.centres[:, 0], eyes.centres[:, 1], template)
    # With --rotate-retry the chip is upright but the photo is not, so the box is taken without a turn in the chip.
    image_to_chip = geometry.invert(chip_to_image[~eyes.plausible])
    boxes_chip = geometry.transform_boxes(image_to_chip, boxes_xyxy[~eyes.plausible])
    by_box = geometry.align_matrix_by_box(boxes_chip, template)
    image_to_crop[~eyes.plausible] = geometry.compose(by_box, image_to_chip)
    return Alignment(image_to_crop, eyes.sure)


def align_chip(
    chip: np.ndarray,
    chip_to_image: np.ndarray,
    box_xyxy: np.ndarray,
    eye_points: np.ndarray,
    template: AlignmentTemplate,
    eye_spread: float | None = None,
    points5: np.ndarray | None = None,
) -> AlignedFace:
    """Cut the upright face out of one chip, see `alignment`.

    chip: (s, s, 3) uint8; chip_to_image: (2, 3); box_xyxy: (4,), eye_points: (12, 2) and points5: (5, 2), image pixels.
    """
    how = alignment(
        chip_to_image[None], np.asarray(box_xyxy)[None], np.asarray(eye_points)[None], template,
        None if eye_spread is None else np.array([eye_spread]), None if points5 is None else points5[None],
    )
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
    """Cut an upright 112×112 crop out of every chip.

    eyes_alone: by the eye points alone, as version 0.1.0; else also by what they and the detector say of themselves.
    """

    def __init__(self, template: AlignmentTemplate, *, eyes_alone: bool) -> None:
        self._template, self._eyes_alone = template, eyes_alone

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        others = (None, None) if self._eyes_alone else (batch.eye_spread, batch.points5)
        how = alignment(batch.chip_to_image, batch.boxes_xyxy, batch.eye_points, self._template, *others)
        chip_to_crop = geometry.compose(how.image_to_crop, batch.chip_to_image)
        if isinstance(batch.chips, ChipStack):
            crops, sharp = batch.chips.aligned(chip_to_crop)
        else:
            crops = np.empty((len(batch), CROP_PX, CROP_PX, 3), np.uint8)
            for crop, chip, matrix in zip(crops, batch.chips, chip_to_crop, strict=True):
                crop[:] = warp(chip, matrix)
            sharp = np.array([sharpness(crop) for crop in crops], np.float32)
        return batch.with_crops(crops, how.align_ok, geometry.turn_deg(how.image_to_crop).astype(np.float32), sharp)
