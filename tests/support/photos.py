"""The two photos that ultralytics ships, whole and in several sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from jobs.demo import demo_photos

ASSETS = demo_photos()
ZIDANE = ASSETS / "zidane.jpg"      # two faces
BUS = ASSETS / "bus.jpg"            # several


def read_photo(path: Path) -> np.ndarray:
    """Pixels (h, w, 3) uint8, BGR."""
    pixels = cv2.imread(str(path))
    assert pixels is not None, path
    return pixels


def photos_in_sizes(longest_sides_px: Iterable[int]) -> dict[str, bytes]:
    """Names and contents: both photos in each size, an image without a face, and a broken file."""
    contents = {}
    for photo in (ZIDANE, BUS):
        image = read_photo(photo)
        for side_px in longest_sides_px:
            scale = side_px / max(image.shape)
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            contents[f"{photo.stem} {side_px}.jpg"] = cv2.imencode(".jpg", small)[1].tobytes()
    contents["grey.jpg"] = cv2.imencode(".jpg", np.full((300, 400, 3), 90, np.uint8))[1].tobytes()
    contents["broken.jpg"] = ZIDANE.read_bytes()[:9000]
    return contents
