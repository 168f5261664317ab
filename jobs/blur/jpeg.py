"""JPEGs at the level of their segments: what of their metadata is kept, and copies that lose nothing."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from pipeline.stages import headers, jpeg, jpeg_quirks
from pipeline.stages.codec import ORIENTATION_TAG
from pipeline.stages.image import is_sound_jpeg

_SOI, _APP0, _EXIF_MARKER = b"\xff\xd8", 0xE0, b"\xff\xe1"


def well_formed(content: bytes) -> bytes | None:
    """A JPEG that every decoder reads as ours does: without the faults that cost no pixel. None for real damage."""
    if jpeg.read_size(content) is None or is_sound_jpeg(content):      # None: a kind that Pillow decodes for us too
        return content
    return jpeg_quirks.rewrite(content)


def orientation_exif(orientation: int | None) -> bytes:
    """EXIF data with the orientation alone, beginning with "Exif"; b"" for upright pictures."""
    if orientation in (None, 1):
        return b""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")


def copy_jpeg(content: bytes, orientation: int | None) -> bytes | None:
    """The same picture, bit by bit, with no metadata but orientation, resolution and colour profile.

    What follows the picture is left out: previews, other pictures, videos. None if it has a fault.
    """
    found = headers.read_jpeg(content)
    clean = well_formed(content)
    header = headers.read_jpeg(clean) if clean else None
    end = headers.jpeg_end(clean, header.data_start) if clean and header else None
    if not (clean and found and header and end):
        return None
    first: list[bytes] = []
    rest: list[bytes] = []
    for segment in _segments(header.stripped):
        if segment[1] == _APP0:                # resolution, and perhaps a thumbnail, which is cut off
            first = first or [segment[:2] + b"\0\x10" + segment[4:16].ljust(12, b"\0") + b"\0\0"]
        else:
            rest.append(segment)
    if exif := orientation_exif(orientation):
        first.append(_EXIF_MARKER + (len(exif) + 2).to_bytes(2, "big") + exif)
    return b"".join([_SOI, *first, *found.profile, *rest, clean[header.data_start : end]])


def _segments(stripped: bytes) -> Iterator[bytes]:
    """The segments of `JpegHeader.stripped`, which follow each other without gaps."""
    position = len(_SOI)
    while position < len(stripped):
        end = position + 2 + int.from_bytes(stripped[position + 2 : position + 4], "big")
        yield stripped[position:end]
        position = end
