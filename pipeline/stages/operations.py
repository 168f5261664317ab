"""What the detector's stage does with pixels: an interface, and its implementation by OpenCV on arrays.

The implementation for GPUs is `models.device_pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from pipeline import geometry
from pipeline.batch import Chips, Pixels, on_host
from pipeline.geometry import CHIP_MAX_PX, LETTERBOX_GREY, Letterbox


class Operations(Protocol):
    """The operations on pixels. Images are (h, w, 3) uint8 RGB, in the memory in which the operations work."""

    def load(self, images: Sequence[Pixels]) -> Sequence[Pixels]:
        """Bring images to that memory."""

    def turned(self, image: Pixels, rotation_deg: int) -> Pixels:
        """The image turned clockwise by a multiple of 90°."""

    def letterbox(self, images: Sequence[Pixels], side_px: int) -> tuple[Pixels, np.ndarray]:
        """As the function `letterbox`, for several images: canvases (n, side_px, side_px, 3), matrices (n, 2, 3)."""

    def cut_chips(self, images: Sequence[Pixels], boxes: Sequence[np.ndarray]) -> tuple[Chips, np.ndarray]:
        """As the function `cut_chip`, for the boxes (k, 4) of each image: all n chips, and matrices (n, 2, 3)."""


class OpenCv:
    """The operations on arrays."""

    def load(self, images: Sequence[Pixels]) -> Sequence[Pixels]:
        """The images as arrays: those that a GPU has decoded too."""
        return [on_host(image) for image in images]

    def turned(self, image: Pixels, rotation_deg: int) -> Pixels:
        """The image turned clockwise by a multiple of 90°."""
        return np.ascontiguousarray(np.rot90(image, -(rotation_deg // 90))) if rotation_deg else image

    def letterbox(self, images: Sequence[Pixels], side_px: int) -> tuple[Pixels, np.ndarray]:
        """Canvases (n, side_px, side_px, 3) and the matrices (n, 2, 3) from canvas pixels to image pixels."""
        canvases = np.empty((len(images), side_px, side_px, 3), np.uint8)
        matrices = [letterbox(image, side_px, canvas)[1] for canvas, image in zip(canvases, images, strict=True)]
        return canvases, np.array(matrices, np.float64).reshape(-1, 2, 3)

    def cut_chips(self, images: Sequence[Pixels], boxes: Sequence[np.ndarray]) -> tuple[Chips, np.ndarray]:
        """The chips of all images, and the matrices (n, 2, 3) from chip pixels to image pixels."""
        cut = [cut_chip(image, box) for image, of in zip(images, boxes, strict=True) for box in of]
        matrices = np.array([matrix for _, matrix in cut], np.float64).reshape(-1, 2, 3)
        return tuple(chip for chip, _ in cut), matrices


def letterbox(pixels: np.ndarray, side_px: int, canvas: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image (h, w, 3) up or down and centre it in a grey square.

    Returns the canvas (side_px, side_px, 3) uint8, which may be given, and the 2×3 matrix from canvas pixels to image
    pixels. The square does not depend on the other images of the batch. That of ultralytics does, so there the same
    image gives different boxes in another batch.
    """
    height, width = pixels.shape[:2]
    place = Letterbox.of(width, height, side_px)
    if canvas is None:
        canvas = np.empty((side_px, side_px, 3), np.uint8)
    canvas.fill(LETTERBOX_GREY)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = cv2.resize(
        pixels, (place.width, place.height), interpolation=cv2.INTER_AREA if place.averaged else cv2.INTER_LINEAR
    )
    return canvas, geometry.scale_shift(place.scale_xy, place.shift_xy)


def cut_chip(pixels: np.ndarray, box_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut out the square around a box, shrunk to at most 256 px; outside the image the edge pixels are repeated.

    The middle of the box must lie in the image. Returns the chip (s, s, 3) uint8 and the 2×3 matrix from chip pixels to
    image pixels.
    """
    left, top, side = geometry.chip_square(box_xyxy)
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    inside = pixels[y1:y2, x1:x2]
    if side <= CHIP_MAX_PX:
        chip = cv2.copyMakeBorder(
            inside, y1 - top, top + side - y2, x1 - left, left + side - x2, cv2.BORDER_REPLICATE
        )
        return chip, geometry.scale_shift((1.0, 1.0), (left, top))
    per_chip_px = side / CHIP_MAX_PX
    chip_to_image = geometry.scale_shift((per_chip_px, per_chip_px), (left, top))
    # Shrink first, repeat edges after: a close-up of 100 megapixels needs no second full copy.
    small_width = max(1, round((x2 - x1) / per_chip_px))
    small_height = max(1, round((y2 - y1) / per_chip_px))
    small = cv2.resize(inside, (small_width, small_height), interpolation=cv2.INTER_AREA)
    if small.shape[:2] == (CHIP_MAX_PX, CHIP_MAX_PX):
        return small, chip_to_image
    small_to_image = geometry.scale_shift(((x2 - x1) / small_width, (y2 - y1) / small_height), (x1, y1))
    small_to_chip = geometry.compose(geometry.invert(chip_to_image), small_to_image)
    chip = cv2.warpAffine(
        small, geometry.for_opencv(small_to_chip), (CHIP_MAX_PX, CHIP_MAX_PX),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
    )
    return chip, chip_to_image
