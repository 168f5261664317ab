"""Make regions of a picture unrecognisable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
from PIL import Image

MARGIN = 0.25       # on every side, of the longer side of the box: it covers chin, ears and hair of turned heads
CELLS = 3           # colours that stay along the longer side of the box. Of the faces of 80 px and more in 102 photos
                    # the embedder, shown the place, found 10% again with 8, 3% with 6, 0.7% with 3, none in black
MIN_CELL_PX = 8     # small faces have few colours anyway: with 6 it found 49% below 20 px, with this 2%

_SWAPS_SIDES, _FLIPS_X, _FLIPS_Y = {5, 6, 7, 8}, {2, 3, 7, 8}, {3, 4, 6, 7}      # EXIF orientations
_BLACK = {"CMYK": (0, 0, 0, 255), "YCbCr": (0, 128, 128), "RGBA": (0, 0, 0, 255), "LA": (0, 255)}


class How(StrEnum):
    """What a face becomes."""

    BLUR = "blur"             # CELLS colours along its longer side, with smooth passages
    PIXELATE = "pixelate"     # the same as squares
    FILL = "fill"             # black


@dataclass(frozen=True, slots=True)
class Region:
    """Whole pixels of a picture as it is stored, the right and lower end exclusive. cell_px: the side of one colour."""

    x1: int
    y1: int
    x2: int
    y2: int
    cell_px: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.x1, self.y1, self.x2, self.y2


def widened(box_xyxy: np.ndarray) -> np.ndarray:
    """The box (4,) with MARGIN around it."""
    margin = MARGIN * float((box_xyxy[2:] - box_xyxy[:2]).max())
    return np.concatenate([box_xyxy[:2] - margin, box_xyxy[2:] + margin])


def regions_of(boxes_xyxy: np.ndarray, size_wh: tuple[int, int], orientation: int) -> list[Region]:
    """Where faces are in the stored picture.

    boxes_xyxy: (n, 4), pixels of the upright picture. size_wh: of the upright picture. orientation: by which readers
    turn the stored picture upright, EXIF's 1 to 8.
    """
    width, height = size_wh[::-1] if orientation in _SWAPS_SIDES else size_wh
    found = []
    for box in boxes_xyxy.astype(np.float64):
        x1, y1, x2, y2 = widened(box)[[1, 0, 3, 2]] if orientation in _SWAPS_SIDES else widened(box)
        if orientation in _FLIPS_X:
            x1, x2 = width - x2, width - x1
        if orientation in _FLIPS_Y:
            y1, y2 = height - y2, height - y1
        x1, y1 = max(0, int(np.floor(x1))), max(0, int(np.floor(y1)))
        x2, y2 = min(width, int(np.ceil(x2))), min(height, int(np.ceil(y2)))
        if x1 < x2 and y1 < y2:
            found.append(Region(x1, y1, x2, y2, max(MIN_CELL_PX, float((box[2:] - box[:2]).max()) / CELLS)))
    return found


def hide_in_image(image: Image.Image, regions: Sequence[Region], how: How) -> None:
    """Change these regions of a picture with a mode that hidden_part takes."""
    for region in regions:
        image.paste(hidden_part(image, image.crop(region.box), region.cell_px, how), region.box)


def hidden_part(image: Image.Image, part: Image.Image, cell_px: float, how: How) -> Image.Image:
    """A part of the picture, unrecognisable, in its mode and with its palette."""
    if how is How.FILL and part.mode != "P":
        return Image.new(part.mode, part.size, _BLACK.get(part.mode, 0))
    match part.mode:
        case "P":
            colours = Image.fromarray(hidden(np.asarray(part.convert("RGB")), cell_px, how))
            return colours.quantize(palette=image, dither=Image.Dither.NONE)
        case "1":
            grey = Image.fromarray(hidden(np.asarray(part.convert("L")), cell_px, how))
            return grey.convert("1", dither=Image.Dither.NONE)
        case "I":
            return Image.fromarray(np.rint(hidden(np.asarray(part, np.float64), cell_px, how)).astype(np.int32))
    return Image.frombytes(part.mode, part.size, hidden(np.asarray(part), cell_px, how).tobytes())


def hidden(pixels: np.ndarray, cell_px: float, how: How) -> np.ndarray:
    """Pixels (h, w) or (h, w, channels) with the mean colour of every cell in place of what was there."""
    if how is How.FILL:
        return np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    cells_wh = max(1, round(width / cell_px)), max(1, round(height / cell_px))
    means = cv2.resize(pixels, cells_wh, interpolation=cv2.INTER_AREA)
    between = cv2.INTER_NEAREST if how is How.PIXELATE else cv2.INTER_CUBIC
    return cv2.resize(means, (width, height), interpolation=between).reshape(pixels.shape)
