"""Decode one image file into upright RGB pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.batch import Status
from pipeline.stages import headers, jpeg, pillow
from pipeline.stages.codec import DecodeError
from pipeline.stages.jpeg import MinSide

DEVICE_MIN_PX, DEVICE_MAX_PX = 64, 8192     # sides of the images that the decoder of a GPU gets


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image file before its pixels are decoded."""

    format: str
    width: int                        # upright, at the original size, pixels
    height: int
    exif_orientation: int | None      # 1 to 8; None if missing or invalid
    decode_scale: float               # 1, 0.5, 0.25 or 0.125
    work_bytes: int                   # memory needed while decoding, without the returned pixels
    must_turn: bool                   # the decoder leaves it to us to apply exif_orientation
    common_jpeg: bool                 # what every JPEG decoder reads alike, see `headers.JpegHeader`

    @property
    def for_device(self) -> bool:
        """Whether the decoder of a GPU may have it."""
        fits = min(self.width, self.height) >= DEVICE_MIN_PX and max(self.width, self.height) <= DEVICE_MAX_PX
        return self.common_jpeg and self.decode_scale == 1 and fits

    @property
    def decoded_wh(self) -> tuple[int, int]:
        """Width and height of the decoded pixels; scaled sides are rounded up."""
        divisor = round(1 / self.decode_scale)
        return -(-self.width // divisor), -(-self.height // divisor)

    @property
    def decoded_bytes(self) -> int:
        """Size of the decoded pixels in bytes."""
        width, height = self.decoded_wh
        return 3 * width * height


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image: pixels (h, w, 3) uint8 RGB, C-contiguous, of the size `header.decoded_wh`."""

    header: Header
    pixels: np.ndarray


def decode_image(content: bytes, *, max_pixels: int, min_side_px: MinSide | None) -> Decoded:
    """Upright RGB pixels of one image file: the first frame of an animation, the first page of a TIFF.

    min_side_px: JPEGs are decoded at the smallest of 1, 1/2, 1/4 and 1/8 at which the longest side is at least this;
        None decodes at full size.
    Transparent pixels are blended with white. 16-bit samples keep their upper 8 bits. The white of float and 32-bit
    samples is the lowest of 1 (floats only), 255 and 65535 that no sample exceeds, else the highest sample. Colour
    profiles are ignored.
    Raises `DecodeError`: unsupported, unreadable (broken, cut off, empty) or too_large.
    """
    header = read_header(content, max_pixels=max_pixels, min_side_px=min_side_px)
    return Decoded(header, decode_pixels(content, header))


def read_header(content: bytes, *, max_pixels: int, min_side_px: MinSide | None) -> Header:
    """Format, size and orientation of an image file; decodes no pixel. Raises `DecodeError`."""
    if not content:
        raise DecodeError(Status.UNREADABLE, "empty file")
    format = headers.sniff_format(content)
    if format is None:
        raise DecodeError(Status.UNSUPPORTED, "not an image, or not a format we decode")
    try:
        stored = jpeg.read_stored(content, min_side_px) if format == "jpeg" else None
        stored = stored or pillow.read_stored(content, format)
    except headers.BombError as error:
        raise DecodeError(Status.TOO_LARGE, f"{format.upper()}: {error}", format=format) from None
    width, height = stored.size_wh
    must_turn = format != "tiff"      # Pillow turns TIFFs itself and gives their upright size
    if must_turn and stored.exif_orientation is not None and stored.exif_orientation >= 5:
        width, height = height, width
    for what, n_pixels in (("", width * height), ("TIFF: tiles ", stored.tile_pixels)):
        if n_pixels > max_pixels:
            reason = f"{what}over the limit of {max_pixels} pixels"
            raise DecodeError(Status.TOO_LARGE, reason, format=format, size_wh=(width, height))
    return Header(
        format, width, height, stored.exif_orientation, stored.decode_scale, stored.work_bytes, must_turn,
        stored.common_jpeg,
    )


def is_too_large(beginning: bytes, *, max_pixels: int) -> bool:
    """Whether the beginning of a file already shows that the image is too_large; then the rest need not be fetched."""
    try:
        read_header(beginning, max_pixels=max_pixels, min_side_px=None)
    except DecodeError as error:
        return error.status is Status.TOO_LARGE
    return False


def is_sound_jpeg(content: bytes) -> bool:
    """Whether a JPEG has all its blocks and no fault, by the decoder for CPUs."""
    size_wh = jpeg.read_size(content)
    return size_wh is not None and jpeg.is_sound(content, size_wh)


def decode_pixels(content: bytes, header: Header) -> np.ndarray:
    """The upright pixels (h, w, 3) uint8 RGB of a file with this header. Raises `DecodeError`."""
    if header.format == "jpeg" and (size_wh := jpeg.read_size(content)):
        pixels = jpeg.decode(content, size_wh, header.decode_scale)
    else:
        pixels = pillow.decode(content, header.format)
    return upright(pixels, header.exif_orientation) if header.must_turn else pixels


def upright(pixels: np.ndarray, exif_orientation: int | None) -> np.ndarray:
    """Pixels as stored, turned and mirrored by the EXIF orientation; C-contiguous."""
    match exif_orientation:
        case 2:
            return cv2.flip(pixels, 1)
        case 3:
            return cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            return cv2.flip(pixels, 0)
        case 5:
            return cv2.transpose(pixels)
        case 6:
            return cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            return cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
        case 8:
            return cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return pixels
