"""What the two decoders share: the facts of a header, the EXIF orientation, and the reasons for a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from pipeline.batch import Status
from pipeline.stages import headers

ORIENTATION_TAG = 0x0112

_UNSUPPORTED_VARIANT = re.compile(r"unknown pixel mode|cannot handle|unsupported (?!marker)|not supported", re.I)

# JPEG processes that our decoders do not support, by the marker of the frame header.
_JPEG_PROCESSES = {
    0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic coding",
    0xCA: "arithmetic coding", 0xCB: "lossless", 0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical",
}


class DecodeError(Exception):
    """An image that cannot be decoded: the status and the reason for its row.

    The reasons are a few texts of our own, not those of the libraries, so that users can count images by reason.
    format, size_wh: what the header said, if it could be read; upright size.
    """

    def __init__(
        self, status: Status, reason: str, *, format: str | None = None, size_wh: tuple[int, int] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.format = format
        self.size_wh = size_wh


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What a file's header says, and what decoding needs.

    size_wh: as stored, so before the EXIF orientation is applied; only for TIFF the upright size.
    work_bytes: memory needed while decoding, without the returned pixels.
    tile_pixels: size of one TIFF tile. A tile is decoded as a whole and can be larger than the image.
    common_jpeg: see `headers.JpegHeader`.
    """

    size_wh: tuple[int, int]
    exif_orientation: int | None
    work_bytes: int
    decode_scale: float = 1.0
    tile_pixels: int = 0
    common_jpeg: bool = False


def exif_orientation(exif: bytes | None) -> int | None:
    """The orientation in EXIF data, 1 to 8; None if it is missing or invalid."""
    if not exif:
        return None
    try:
        parsed = Image.Exif()
        parsed.load(exif)
        return valid_orientation(parsed.get(ORIENTATION_TAG))
    except Exception:      # broken EXIF makes Pillow raise almost any error; the picture is still good
        return None


def valid_orientation(value: object) -> int | None:
    """The value if it is an EXIF orientation, 1 to 8, else None."""
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def decode_failure(message: str, format: str, content: bytes, where: str) -> DecodeError:
    """The error for a file that a decoder rejected: cut off, an unsupported variant, or damaged.

    message: of the decoder. where: "header" or "pixels".
    """
    name = format.upper()
    if headers.is_cut_off(content, format):
        return DecodeError(Status.UNREADABLE, f"{name}: cut off before the picture ends", format=format)
    jpeg = headers.read_jpeg(content) if format == "jpeg" else None
    if jpeg and jpeg.precision_bits in (12, 16):
        return DecodeError(Status.UNSUPPORTED, f"{name}: {jpeg.precision_bits} bits a sample", format=format)
    if jpeg and jpeg.process in _JPEG_PROCESSES:
        return DecodeError(Status.UNSUPPORTED, f"{name}: {_JPEG_PROCESSES[jpeg.process]}", format=format)
    if _UNSUPPORTED_VARIANT.search(message):
        return DecodeError(Status.UNSUPPORTED, f"{name}: a variant we do not decode", format=format)
    return DecodeError(Status.UNREADABLE, f"{name}: damaged {where}", format=format)
