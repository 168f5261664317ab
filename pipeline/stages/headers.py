"""Read image files before a decoder does: format, EXIF, metadata to strip, truncation, decompression bombs.

Decoders unpack profiles and comments that we do not need, walk through a file's parts in Python, and trust the number
of scans, strips and tiles in a header. So a file of a few kilobytes can keep one busy for an hour, or fill the memory.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

MAX_PARTS = 1_000_000        # segments, chunks or strips; 200 megapixels in strips of one row are 60,000
MAX_SCANS = 100              # of a JPEG; the limit of libvips and libtiff; encoders write 10
MAX_RLE_WIDTH = 65_535       # of a run-length coded BMP: four bytes skip 255 rows, which Pillow fills in memory

_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]", re.S)
_JPEG_MARKER_AFTER_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.S)       # restart markers belong to the data
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA

_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8,
                    18: 8}
_TIFF_NUMBERS = {3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_TILE_SIDES, _PIECE_OFFSETS, _PIECE_BYTES = (322, 323), (273, 324), (279, 325)    # a piece: a strip or a tile
_TIFF_LAYOUT_TAGS = {*_TILE_SIDES, *_PIECE_OFFSETS, *_PIECE_BYTES}


class BombError(ValueError):
    """A decompression bomb: a file whose decoding would take far too much time or memory. The message says why."""


def sniff_format(content: bytes) -> str | None:
    """The format by the first bytes, as in the column `format`; None if we do not decode it."""
    if content.startswith(b"\xff\xd8"):
        return "jpeg"
    if content.startswith(b"\x89PNG"):
        return "png"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith(b"BM") and int.from_bytes(content[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    if content[4:8] == b"ftyp":
        box_end = min(int.from_bytes(content[:4], "big"), 256)
        brands = {content[8:12], *(content[i : i + 4] for i in range(16, box_end, 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIC_BRANDS:
            return "heic"
    return None


def is_cut_off(content: bytes, format: str) -> bool:
    """Whether a file that could not be decoded ends too early, by its own structure. Raises BombError."""
    match format:
        case "jpeg":
            header = read_jpeg(content)
            return header is None or content.rfind(b"\xff\xd9") < header.data_start
        case "png":
            return read_png(content).cut_off
        case "gif":
            return not content.rstrip(b"\0").endswith(b";")
        case "bmp":
            return int.from_bytes(content[2:6], "little") > len(content)
        case "webp":
            return int.from_bytes(content[4:8], "little") + 8 > len(content)
        case "tiff":
            return read_tiff(content).cut_off
        case _:
            return _boxes_end(content) > len(content) or b"mdat" not in content


def strip_metadata(content: bytes, format: str) -> bytes:
    """The file without the parts that decoding does not need and that could confuse or slow down a decoder."""
    if format == "png":
        return read_png(content).stripped
    if format == "jpeg" and (header := read_jpeg(content)):
        return header.stripped + content[header.data_start :]
    return content


def _boxes_end(content: bytes) -> int:
    """The end of the last box of a HEIC or AVIF file, by the sizes in the boxes."""
    start = 0
    for _ in range(MAX_PARTS):
        if start >= len(content):
            break
        size = int.from_bytes(content[start : start + 4], "big")
        if size == 1:
            size = int.from_bytes(content[start + 8 : start + 16], "big")
        if size < 8:                  # 0: until the end of the file; 2 to 7: not a box
            break
        start += size
    return start


# --- JPEG


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """A JPEG up to `data_start`, where the data of its first scan begins.

    stripped: only the segments that decoding needs, without stray bytes between them, with a known JFIF version.
    process: the second byte of the frame header's marker: 0xC0 baseline, 0xC2 progressive, …
    scans: counted up to MAX_SCANS + 1.
    exif: the bytes in the file, not checked. profile: the segments of the colour profile.
    common: baseline, 8 bits, one scan of Y, Cb and Cr with the usual subsampling: what every JPEG decoder reads alike.
    """

    stripped: bytes
    data_start: int
    process: int
    precision_bits: int
    components: int
    scans: int
    exif: bytes | None
    profile: tuple[bytes, ...]
    common: bool


def read_jpeg(content: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if the file ends before its first scan. Raises BombError."""
    parts, profile, frame, exif = [content[:2]], [], b"", None
    position = 2
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(content, position)
        if found is None or content[found.start() + 1] == _END_OF_IMAGE:
            return None
        start, marker = found.start(), content[found.start() + 1]
        if marker in _NO_LENGTH:
            position = start + 2
            continue
        position = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if position > len(content):
            return None
        segment = content[start:position]
        if marker in _FRAME_HEADERS:
            frame = frame or segment
        if segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1\1" + segment[11:]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[10:]
        if marker == 0xE2 and segment[4:16] == b"ICC_PROFILE\0":
            profile.append(segment)
        # Comments and application segments are dropped, but for the two that say how colours are stored.
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or segment[4:9] in (b"JFIF\0", b"Adobe"):
            parts.append(segment)
        if marker == _START_OF_SCAN:
            frame = frame.ljust(10, b"\0")
            in_passes = frame[1] in _PROGRESSIVE or segment[4:5] < frame[9:10]
            scans = _count_scans(content, position) if in_passes else 1
            adobe = any(part[4:9] == b"Adobe" for part in parts)
            common = not in_passes and not adobe and _is_common(frame)
            return JpegHeader(
                b"".join(parts), position, frame[1], frame[4], frame[9], scans, exif, tuple(profile), common
            )
    raise BombError(f"more than {MAX_PARTS} segments")


def jpeg_end(content: bytes, data_start: int) -> int | None:
    """Where the picture of a JPEG ends, by its end marker; other pictures may follow. Raises BombError."""
    position = data_start
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER_AFTER_DATA.search(content, position)
        if found is None:
            return None
        if content[found.start() + 1] == _END_OF_IMAGE:
            return found.end()
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    raise BombError(f"more than {MAX_PARTS} segments")


def _is_common(frame: bytes) -> bool:
    """Whether a frame header says baseline, 8 bits, and Y, Cb, Cr with the colours halved in no, one or both ways."""
    identifiers, sampling = frame[10:19:3], frame[11:19:3]
    return (
        frame[1] == 0xC0 and frame[4] == 8 and len(frame) == 19 and identifiers == b"\1\2\3"
        and sampling in (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")
    )


def _count_scans(content: bytes, position: int) -> int:
    scans = 1
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER_AFTER_DATA.search(content, position)
        if found is None or content[found.start() + 1] == _END_OF_IMAGE or scans > MAX_SCANS:
            return scans
        scans += content[found.start() + 1] == _START_OF_SCAN
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    raise BombError(f"more than {MAX_PARTS} segments")


# --- PNG


@dataclass(frozen=True, slots=True)
class PngParts:
    """A PNG.

    stripped: the file with only the chunks that decoding needs. exif: from a chunk before or after the pixels.
    """

    stripped: bytes
    exif: bytes | None
    cut_off: bool


def read_png(content: bytes) -> PngParts:
    """The parts of a PNG. Raises BombError."""
    view = memoryview(content)
    kept, exif, start = [view[:8]], None, 8
    for _ in range(MAX_PARTS):
        kind = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if kind == b"eXIf":
            exif = exif or content[start + 8 : end - 4]
        if kind[:1].isupper() or not kind.isalpha() or kind == b"tRNS":      # a capital: decoders must not skip it
            kept.append(view[start:end])
        if end > len(content) or kind == b"IEND":
            whole = sum(map(len, kept)) == len(content)            # most files: no copy
            return PngParts(content if whole else b"".join(kept), exif, end > len(content))
        start = end
    raise BombError(f"more than {MAX_PARTS} chunks")


# --- TIFF, BMP


@dataclass(frozen=True, slots=True)
class TiffParts:
    """What a TIFF's first directory says. tile_pixels: the size of one tile, 0 without tiles."""

    tile_pixels: int
    cut_off: bool


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """The first directory of a TIFF. entries: number, type, count and value of each tag. data_end: of the tags.

    big: whether it is a BigTIFF, with offsets of 8 bytes.
    """

    content: bytes
    order: str                # of `struct`: "<" or ">"
    big: bool
    entries: tuple[tuple[int, int, int, bytes], ...]
    data_end: int

    def tags(self) -> list[int]:
        """The numbers of the tags."""
        return [tag for tag, *_ in self.entries]

    def numbers(self, wanted: int) -> list[int]:
        """The whole numbers of a tag; none if it is missing, of another type, or outside the file. Raises BombError."""
        for tag, kind, length, value in self.entries:
            if tag == wanted and kind in _TIFF_NUMBERS:
                return [int(number) for number in self._array(kind, length, value)]
        return []

    def number(self, wanted: int, default: int) -> int:
        """The first number of a tag."""
        return (self.numbers(wanted) or [default])[0]

    def _array(self, kind: int, length: int, value: bytes) -> np.ndarray:
        if length > MAX_PARTS:
            raise BombError(f"more than {MAX_PARTS} strips or tiles")
        n_bytes = length * _TIFF_TYPE_BYTES[kind]
        at = int.from_bytes(value, "little" if self.order == "<" else "big")
        held = self.content[at : at + n_bytes] if n_bytes > len(value) else value
        dtype = self.order + _TIFF_NUMBERS[kind]
        return np.frombuffer(held, dtype, length) if len(held) >= n_bytes else np.zeros(0, dtype)

    def rewritten(self, content: bytes, changed: dict[int, list[int]], without: set[int]) -> bytes:
        """The file with this directory anew at its end: other numbers for some tags, and without others."""
        word, count, kind = ("Q", "Q", 16) if self.big else ("L", "H", 4)
        kept = {tag: (kind, length, value) for tag, kind, length, value in self.entries if tag not in without}
        start = len(content) + len(content) % 2
        width = struct.calcsize(self.order + word)
        tags = sorted({*kept, *changed})
        after = start + struct.calcsize(self.order + count) + len(tags) * (4 + 2 * width) + width
        entries, arrays = b"", b""
        for tag in tags:
            if tag in changed:
                numbers = struct.pack(f"{self.order}{len(changed[tag])}{word}", *changed[tag])
                outside = len(numbers) > width
                value = struct.pack(self.order + word, after + len(arrays)) if outside else numbers.ljust(width, b"\0")
                kept[tag] = (kind, len(changed[tag]), value)
                arrays += numbers if outside else b""
            entries += struct.pack(f"{self.order}HH{word}", tag, *kept[tag][:2]) + kept[tag][2]
        at = 8 if self.big else 4
        first = content[:at] + struct.pack(self.order + word, start) + content[at + width :]
        return b"".join([
            first, bytes(start - len(content)), struct.pack(self.order + count, len(tags)), entries,
            struct.pack(self.order + word, 0), arrays,
        ])


def read_tiff(content: bytes) -> TiffParts:
    """The parts of a TIFF, by its first directory. Raises BombError."""
    directory = tiff_directory(content)
    if directory is None:
        return TiffParts(0, cut_off=True)
    data_end = directory.data_end
    for _, kind, length, value in directory.entries:
        n_bytes = length * _TIFF_TYPE_BYTES.get(kind, 0)
        if n_bytes > len(value):                # then the value is the offset of the numbers
            data_end = max(data_end, int.from_bytes(value, "little" if directory.order == "<" else "big") + n_bytes)
    numbers = {tag: directory.numbers(tag) for tag in _TIFF_LAYOUT_TAGS}
    for first, size in zip(_PIECE_OFFSETS, _PIECE_BYTES, strict=True):
        if len(numbers[first]) == len(numbers[size]) > 0:
            data_end = max(data_end, max(map(sum, zip(numbers[first], numbers[size], strict=True))))
    sides = [numbers[tag][0] for tag in _TILE_SIDES if numbers[tag]]
    return TiffParts(sides[0] * sides[1] if len(sides) == 2 else 0, data_end > len(content))


def tiff_directory(content: bytes) -> TiffDirectory | None:
    """The first directory of a TIFF; None if it is cut off. Raises BombError."""
    order, big = "<" if content.startswith(b"II") else ">", b"+" in content[2:4]
    offset, count, entry = ("Q", "Q", "HHQ8s") if big else ("L", "H", "HHL4s")
    tags = struct.Struct(order + entry)
    try:
        (start,) = struct.unpack_from(order + offset, content, 8 if big else 4)
        (n_tags,) = struct.unpack_from(order + count, content, start)
    except (struct.error, OverflowError):
        return None
    start += struct.calcsize(count)
    end = start + n_tags * tags.size
    if end + struct.calcsize(offset) > len(content):       # the offset of the next directory follows the tags
        return None
    if n_tags > MAX_PARTS:
        raise BombError(f"more than {MAX_PARTS} tags")
    return TiffDirectory(content, order, big, tuple(tags.iter_unpack(memoryview(content)[start:end])), end)


def check_bmp(content: bytes) -> None:
    """Raises BombError for a run-length coded BMP with rows so long that skipping rows would fill the memory."""
    if int.from_bytes(content[14:18], "little") >= 40:
        width, compression = int.from_bytes(content[18:22], "little"), int.from_bytes(content[30:34], "little")
        if compression in (1, 2) and width > MAX_RLE_WIDTH:
            raise BombError(f"run-length coded and more than {MAX_RLE_WIDTH} pixels wide")
