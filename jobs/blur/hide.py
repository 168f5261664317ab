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

STRIP_ROWS = 256    # of a region, changed at a time: copies of a whole one take 11 bytes a pixel

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
    def cells(self) -> tuple[int, int]:
        """How many colours are left, across and down."""
        return max(1, round((self.x2 - self.x1) / self.cell_px)), max(1, round((self.y2 - self.y1) / self.cell_px))

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
    """Change these regions of a picture with one of the modes of `formats.copy_without_faces`."""
    for region in regions:
        if how is How.FILL:
            image.paste(_black(image), region.box)
        else:
            _hide_by_strips(image, region, how)


def _hide_by_strips(image: Image.Image, region: Region, how: How) -> None:
    across, down = region.cells
    strips = [
        (region.x1, top, region.x2, min(top + STRIP_ROWS, region.y2)) for top in range(region.y1, region.y2, STRIP_ROWS)
    ]
    rows = np.concatenate([_shrink(_pixels(image.crop(strip)), across, None) for strip in strips])
    rows = _stretch(_shrink(rows, None, down), None, len(rows), how)
    for strip in strips:
        narrow = rows[strip[1] - region.y1 : strip[3] - region.y1]
        image.paste(_in_mode_of(image, _stretch(narrow, region.x2 - region.x1, None, how)), strip)


def _black(image: Image.Image) -> int | tuple[int, ...]:
    """Black in the mode of the picture, or what is nearest to it in its palette."""
    if image.mode == "P":
        return int(_in_mode_of(image, np.zeros((1, 1, 3), np.uint8)).tobytes()[0])
    return _BLACK.get(image.mode, 0)


def hidden(pixels: np.ndarray, region: Region, how: How) -> np.ndarray:
    """The pixels (h, w) or (h, w, channels) of a region with the mean colour of every cell in place of what was there.
    """
    if how is How.FILL:
        return np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    return _stretch(_shrink(pixels, *region.cells), width, height, how).reshape(pixels.shape)


def _shrink(pixels: np.ndarray, width: int | None, height: int | None) -> np.ndarray:
    """The means of cells, so many across and down; None leaves that side as it is."""
    size_wh = width or pixels.shape[1], height or pixels.shape[0]
    return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA).reshape(*size_wh[::-1], *pixels.shape[2:])


def _stretch(cells: np.ndarray, width: int | None, height: int | None, how: How) -> np.ndarray:
    between = cv2.INTER_NEAREST if how is How.PIXELATE else cv2.INTER_CUBIC
    size_wh = width or cells.shape[1], height or cells.shape[0]
    return cv2.resize(cells, size_wh, interpolation=between).reshape(*size_wh[::-1], *cells.shape[2:])


def _pixels(part: Image.Image) -> np.ndarray:
    """The colours of a part of a picture, as numbers that have means."""
    match part.mode:
        case "P":
            return np.asarray(part.convert("RGB"))
        case "1":
            return np.asarray(part.convert("L"))
        case "I":
            return np.asarray(part, np.float64)
    return np.asarray(part)


def _in_mode_of(image: Image.Image, pixels: np.ndarray) -> Image.Image:
    """The inverse of `_pixels`, with the palette of the picture."""
    match image.mode:
        case "P":
            return Image.fromarray(pixels).quantize(palette=image, dither=Image.Dither.NONE)
        case "1":
            return Image.fromarray(pixels).convert("1", dither=Image.Dither.NONE)
        case "I":
            return Image.fromarray(np.rint(pixels).astype(np.int32))
    return Image.frombytes(image.mode, pixels.shape[1::-1], pixels.tobytes())
