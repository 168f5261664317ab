"""Decode JPEGs with libjpeg-turbo (simplejpeg), which can scale while it decodes and reports truncated files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simplejpeg

from pipeline.stages import headers, jpeg_quirks
from pipeline.stages.codec import StoredImage, decode_failure, exif_orientation

MinSide = Callable[[int, int], int]
"""How long the longest side of the decoded pixels must be, for a picture of this width and height."""


def read_stored(content: bytes, min_side_px: MinSide | None) -> StoredImage | None:
    """The facts of a JPEG's header; None for the rare kinds that simplejpeg cannot decode but Pillow might.

    Raises `DecodeError`, BombError.
    """
    header = headers.read_jpeg(content)
    if header is None:
        raise decode_failure("no scan", "jpeg", content, "header")
    if header.scans > headers.MAX_SCANS:
        raise headers.BombError(f"more than {headers.MAX_SCANS} scans")
    size_wh = read_size(content)
    if size_wh is None:
        return None
    # With several scans libjpeg keeps all coefficients in memory, 2 bytes each, at any scale.
    work_bytes = 2 * header.components * size_wh[0] * size_wh[1] if header.scans > 1 else 0
    scale = jpeg_scale(*size_wh, min_side_px)
    return StoredImage(size_wh, exif_orientation(header.exif), work_bytes, scale, common_jpeg=header.common)


def read_size(content: bytes) -> tuple[int, int] | None:
    """Width and height as stored; None where simplejpeg cannot decode the file."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    except (ValueError, KeyError):    # KeyError: a colour space that simplejpeg has no name for
        return None
    return width, height


def jpeg_scale(width: int, height: int, min_side_px: MinSide | None) -> float:
    """The smallest of 1, 1/2, 1/4, 1/8 at which the longest side is at least min_side_px; None gives 1."""
    if min_side_px is None:
        return 1.0
    least_px = min_side_px(width, height)
    return next((1 / d for d in (8, 4, 2) if max(width, height) >= d * least_px), 1.0)


def decode(content: bytes, size_wh: tuple[int, int], scale: float) -> np.ndarray:
    """The pixels as stored, (h, w, 3) uint8 RGB; each side is multiplied by `scale` and rounded up.

    A fault that costs no pixel does not matter. Raises `DecodeError`.
    """
    try:
        return _libjpeg(content, size_wh, scale, strict=True)
    except ValueError:
        rewritten = jpeg_quirks.rewrite(content)
    try:
        return _libjpeg(rewritten or headers.strip_metadata(content, "jpeg"), size_wh, scale, strict=True)
    except ValueError as error:
        # Stray bytes before the end marker are harmless: all blocks were read. Before another marker, blocks are lost.
        if rewritten is None or "extraneous bytes before marker 0xd9" not in str(error):
            raise decode_failure(str(error), "jpeg", content, "pixels") from error
        return _libjpeg(rewritten, size_wh, scale, strict=False)


def is_sound(content: bytes, size_wh: tuple[int, int]) -> bool:
    """Whether libjpeg-turbo reads the whole file without a warning; in half the time of decoding it."""
    try:
        _libjpeg(content, size_wh, 1 / 8, strict=True, colours="GRAY")
    except ValueError:
        return False
    return True


def _libjpeg(
    content: bytes, size_wh: tuple[int, int], scale: float, *, strict: bool, colours: str = "RGB"
) -> np.ndarray:
    divisor = round(1 / scale)
    width, height = (-(-side // divisor) for side in size_wh)
    # simplejpeg ignores min_factor unless min_height and min_width are given too.
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        content, colours, min_height=height, min_width=width, min_factor=divisor, strict=strict
    )
    return pixels
