"""Two photos that need no download, and a copy of a photo that stands for a second picture of the same people."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from pipeline import geometry
from pipeline.errors import UserError


def demo_photos() -> Path:
    """The folder with the two photos that ultralytics brings."""
    spec = find_spec("ultralytics")      # it is not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise UserError("the package ultralytics is not installed; name a folder of photos")
    return Path(spec.origin).parent / "assets"


def turned_copy(
    pixels: np.ndarray, *, degrees: float = 12, scale: float = 0.6, light: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """The photo (h, w, 3) uint8 smaller and turned counter-clockwise about its middle, and darker, at the same size.

    Also the 2×3 matrix from the photo's pixels to the copy's.
    """
    height, width = pixels.shape[:2]
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    linear, middle = np.array([[cos, sin], [-sin, cos]]), np.array([width / 2, height / 2])
    matrix = np.column_stack([linear, middle - linear @ middle])
    turned = cv2.warpAffine(pixels, geometry.for_opencv(matrix), (width, height))
    return (light * turned).astype(np.uint8), matrix
