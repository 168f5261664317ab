"""Image files built in code: every kind that we decode, and every kind of damage, each with its expected outcome."""

from __future__ import annotations

import functools
import importlib.util
import io
import operator
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from pipeline.batch import GOOD, Status

Outcome = tuple[Status, str | None]
"""The expected status of an image, and the text in the column `error`."""

DECODED = frozenset((status, None) for status in GOOD)
CUT_OFF, DAMAGED_HEADER, DAMAGED_PIXELS = "cut off before the picture ends", "damaged header", "damaged pixels"
NO_IMAGE = frozenset({(Status.UNSUPPORTED, "not an image, or not a format we decode")})
MAX_PIXELS = 200_000_000


def least_side(px: int | None) -> Callable[[int, int], int] | None:
    """That the longest side of decoded pixels must be so long, whatever the picture's size."""
    return None if px is None else lambda width, height: px

TOO_MANY_PIXELS = frozenset({(Status.TOO_LARGE, f"over the limit of {MAX_PIXELS} pixels")})


def unreadable(format: str, *reasons: str) -> frozenset[Outcome]:
    """Outcomes of a broken file of that format, one for each reason."""
    return frozenset((Status.UNREADABLE, f"{format.upper()}: {reason}") for reason in reasons)


def unsupported(format: str, *reasons: str) -> frozenset[Outcome]:
    """Outcomes of a file of that format that we do not decode, one for each reason."""
    return frozenset((Status.UNSUPPORTED, f"{format.upper()}: {reason}") for reason in reasons)


def fetch_failed(reason: str) -> frozenset[Outcome]:
    """The outcome of a file that cannot be opened."""
    return frozenset({(Status.FETCH_FAILED, reason)})


def too_large(format: str, reason: str) -> frozenset[Outcome]:
    """The outcome of a file of that format that would cost too much."""
    return frozenset({(Status.TOO_LARGE, f"{format.upper()}: {reason}")})


def any_damage(format: str) -> frozenset[Outcome]:
    """All possible outcomes of a file of that format with some bytes changed."""
    outcomes = DECODED | NO_IMAGE | TOO_MANY_PIXELS | unreadable(format, CUT_OFF, DAMAGED_HEADER, DAMAGED_PIXELS)
    outcomes |= unsupported(format, "a variant we do not decode")
    match format:
        case "jpeg":
            outcomes |= unsupported(format, "12 bits a sample", "16 bits a sample", "lossless", "hierarchical",
                                "arithmetic coding") | too_large(format, "more than 100 scans")
        case "tiff":
            outcomes |= unsupported(format, "a camera's raw file", "colours given as LAB")
            outcomes |= too_large(format, "more than 1000000 strips or tiles")
            outcomes |= too_large(format, "more than 1000000 tags")
            outcomes |= too_large(format, f"tiles over the limit of {MAX_PIXELS} pixels")
        case "bmp":
            outcomes |= too_large(format, "run-length coded and more than 65535 pixels wide")
    return outcomes


HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

WIDTH, HEIGHT = 120, 80
ORIENTATION_TAG = 0x0112

# How Pillow turns an upright picture into the stored one, by the EXIF standard. Readers do the inverse.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Sample:
    """One image file and its possible outcomes, mostly one.

    picture: the upright pixels, if it is decoded. mean_error: the largest allowed mean absolute difference to them.
    orientation: the EXIF orientation that decoding reports.
    """

    name: str
    content: bytes
    outcomes: frozenset[Outcome]
    format: str | None = None
    picture: np.ndarray | None = None
    mean_error: float = 0.0
    orientation: int | None = None


def picture() -> np.ndarray:
    """An upright picture (80, 120, 3): ramps and a blue disc at the top left. Every turn and mirroring changes it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    blue = 220 * ((x - 30) ** 2 + (y - 25) ** 2 < 15**2)
    return np.stack([x * 2, y * 3, blue], axis=-1).astype(np.uint8)


def grey(rgb: np.ndarray) -> np.ndarray:
    """The luma of a picture, in three equal channels."""
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))


def encode(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """An image file that Pillow writes."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int, **options: object) -> bytes:
    """A file with turned pixels and the EXIF orientation that undoes the turn."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    image = Image.fromarray(picture())
    if orientation in _STORED:
        image = image.transpose(_STORED[orientation])
    return encode(image, format, exif=exif, **options)


def jpeg(**options: object) -> bytes:
    """The picture as a good JPEG."""
    return encode(picture(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def jpeg_quirks() -> Iterator[tuple[str, bytes]]:
    """The picture as JPEGs with faults that cost no pixel, as cameras and programs write them."""
    plain, progressive = jpeg(), jpeg(progressive=True)
    trailer = b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1700000000000SEFH" + bytes(24) + b"SEFT"
    movie = b"\0\0\0\x18ftypmp42" + random.Random(5).randbytes(3000)
    for name, at, value in (("se-0", 1, 0), ("se-64", 1, 64), ("ss-1", 0, 1), ("al-1", 2, 1), ("ah-1", 2, 16)):
        scan = plain.index(b"\xff\xda") + 5 + 2 * 3 + at
        yield name, plain[:scan] + bytes([value]) + plain[scan + 1 :]
    for kind, content in (("plain", plain), ("progressive", progressive), ("restarts", jpeg(restart_marker_rows=1)),
                          ("in-scans", in_scans(plain))):
        body = content[:-2]
        yield f"{kind}-no-end", body
        yield f"{kind}-half-an-end", body + b"\xff"
        yield f"{kind}-zeros-for-the-end", body + bytes(4096)
        yield f"{kind}-ones-for-the-end", body + b"\xff" * 4096
        yield f"{kind}-trailer-for-the-end", body + trailer + movie
        yield f"{kind}-next-picture-for-the-end", body + content
        yield f"{kind}-zeros-before-the-end", body + bytes(64) + content[-2:]
        yield f"{kind}-comment-before-the-end", body + jpeg_segment(0xFE, b"by a camera") + content[-2:]
    for number in range(progressive.count(b"\xff\xda")):
        yield f"scan-{number}-twice", repeated_scan(progressive, number)
        yield f"scan-{number}-twice-no-end", repeated_scan(progressive, number)[:-2]
    yield "zeros-between-scans", insert(progressive, b"\xff\xc4", bytes(64), last=True)
    restarts = jpeg(restart_marker_rows=1)
    yield "restarts-from-1", b"".join(
        restarts[i : i + 1] if not (i and restarts[i - 1] == 0xFF and 0xD0 <= restarts[i] < 0xD8)
        else bytes([0xD0 + (restarts[i] - 0xD0 + 1) % 8]) for i in range(len(restarts)))
    yield "restarts-announced-only", insert(plain, b"\xff\xda", b"\xff\xdd\0\4\0\5")
    for transform in (2, 7):
        adobe = jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
        yield f"adobe-transform-{transform}", plain[:2] + adobe + plain[20:]


def in_scans(content: bytes) -> bytes:
    """The picture as a baseline JPEG with one scan for each component: three grey JPEGs of Pillow in one.

    content: a JPEG of the picture, whose first segment is kept.
    """
    luma_chroma = [encode(plane, "JPEG", quality=95, optimize=False)
                   for plane in Image.fromarray(picture()).convert("YCbCr").split()]
    frame_at = luma_chroma[0].index(b"\xff\xc0")
    tables = luma_chroma[0][20:frame_at] + luma_chroma[0][frame_at + 13 : luma_chroma[0].index(b"\xff\xda")]
    frame = jpeg_segment(0xC0, struct.pack(">BHHB", 8, HEIGHT, WIDTH, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    body = b"".join(
        jpeg_segment(0xDA, bytes([1, name, 0, 0, 63, 0])) + plane[plane.index(b"\xff\xda") + 10 : -2]
        for name, plane in enumerate(luma_chroma, 1))
    return content[:20] + tables + frame + body + b"\xff\xd9"


def repeated_scan(progressive: bytes, number: int) -> bytes:
    """A progressive JPEG with one of its scans twice, one after the other."""
    starts = [found.start() for found in re.finditer(rb"\xff\xda", progressive)]
    ends = (found.start() for found in re.finditer(rb"\xff[\xc4\xd9]", progressive))
    end = next(at for at in ends if at > starts[number])
    scan = progressive[starts[number] : end]
    return progressive[: starts[number]] + scan + progressive[starts[number] :]


def cmyk(rgb: np.ndarray) -> np.ndarray:
    """Inks (h, w, 4) uint8 of an RGB picture, with as much black as possible."""
    black = 255 - rgb.max(axis=2, keepdims=True).astype(np.float64)
    inks = (255 - rgb - black) / np.maximum(255 - black, 1) * 255
    return np.concatenate([inks, black], axis=2).round().astype(np.uint8)


def ycck_jpeg() -> bytes:
    """A JPEG as Photoshop writes it: inverted inks, stored as YCCK, with Adobe's transform 2."""
    inks = cmyk(picture())
    luma_chroma = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    raw = np.dstack([luma_chroma, 255 - inks[..., 3]])
    content = bytearray(encode(Image.fromarray(255 - raw, "CMYK"), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def by_opencv(extension: str, pixels_rgb: np.ndarray) -> bytes:
    """A file that OpenCV writes. Unlike Pillow, it writes 16-bit colours."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels_rgb.shape[2]]
    return cv2.imencode(extension, cv2.cvtColor(pixels_rgb, order))[1].tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, interlaced: bool = False) -> bytes:
    """An RGB PNG of these rows. Each row starts with its filter byte."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims that size, with the pixels of one row."""
    return png(width, height, bytes(1 + 3 * min(width, 1_000_000)))


def png_with(*chunks: bytes) -> bytes:
    """The picture as a PNG, with these chunks after its header."""
    content = encode(picture(), "PNG")
    return content[:33] + b"".join(chunks) + content[33:]


def interlaced_png() -> bytes:
    """The picture as an interlaced PNG (Adam7), which Pillow does not write."""
    rows = b""
    for left, top, right, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                                   (0, 1, 1, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in picture()[top::down, left::right])
    return png(WIDTH, HEIGHT, rows, interlaced=True)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims that size."""
    content = bytearray(jpeg())
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    """A good JPEG with these segments before its own."""
    return b"".join([b"\xff\xd8", *segments, jpeg()[2:]])


def flat_jpeg(*, process: int = 0xC0, bits: int = 8) -> bytes:
    """A grey JPEG built by hand; each block is two zero bits. No encoder here writes 12 bits per sample."""
    code = bytes([1, *[0] * 15, 0])                    # one code of one bit, for the value 0
    frame = struct.pack(">BHHB", bits, HEIGHT, WIDTH, 1) + b"\1\x11\0"
    header = jpeg_segment(0xDB, b"\0" + b"\1" * 64) + jpeg_segment(process, frame)
    header += jpeg_segment(0xC4, b"\0" + code) + jpeg_segment(0xC4, b"\x10" + code)
    return b"\xff\xd8" + header + jpeg_segment(0xDA, b"\1\1\0\0\x3f\0") + bytes(37) + b"\x0f\xff\xd9"   # 150 blocks


def jpeg_of_scans(count: int, side_px: int = 64) -> bytes:
    """A progressive JPEG that repeats its last scan. Each scan has few bytes and costs a pass over all pixels."""
    content = encode(Image.new("RGB", (side_px, side_px)), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * (count - content.count(b"\xff\xda")) + content[-2:]


def broken_exif(body: bytes) -> bytes:
    """A good JPEG with these bytes in place of EXIF."""
    return jpeg_with(jpeg_segment(0xE1, b"Exif\0\0" + body))


def ifd(*entries: tuple[int, int, int, int | bytes], order: str = "<", big: bool = False, after: bytes = b"") -> bytes:
    """A TIFF, or the EXIF of another file: entries (tag, type, count, value or offset), then the bytes `after`."""
    head, count, entry, end = ("Q", "Q", "HHQ8s", 8) if big else ("L", "H", "HHL4s", 4)
    first = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HL", 42, 8)
    content = (b"II" if order == "<" else b"MM") + first + struct.pack(order + count, len(entries))
    for tag, kind, length, value in entries:
        if not isinstance(value, bytes):
            value = struct.pack(order + ({3: "H", 4: "L"}.get(kind, head) if length == 1 else head), value)
        content += struct.pack(order + entry, tag, kind, length, value.ljust(end, b"\0"))
    return content + bytes(struct.calcsize(head)) + after


def tiff_of_size(width: int, height: int, *more: tuple[int, int, int, int], big: bool = False) -> bytes:
    """A grey TIFF whose header claims that size, with a thousand bytes of pixels."""
    tags = sorted([(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
                   (277, 3, 1, 1), (273, 4, 1, 400), (278, 4, 1, height), (279, 4, 1, 1000), *more])
    return ifd(*tags, big=big).ljust(400, b"\0") + bytes(1000)


def tiled_tiff(width: int, height: int, tile_px: int, tiles: bytes, n_tiles: int) -> bytes:
    """An RGB TIFF of square tiles. `tiles` holds them, packed by zlib, all of the same length."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 0), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
            (322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, n_tiles, 0), (325, 4, n_tiles, 0)]
    at = len(ifd(*tags))
    bits, offsets, sizes, data = at, at + 6, at + 6 + 4 * n_tiles, at + 6 + 8 * n_tiles
    each = len(tiles) // n_tiles
    if n_tiles == 1:
        offsets, sizes = data, each
    tags = [(tag, kind, n, {258: bits, 324: offsets, 325: sizes}.get(tag, value)) for tag, kind, n, value in tags]
    after = struct.pack("<HHH", 8, 8, 8) + struct.pack(f"<{n_tiles}L", *(data + i * each for i in range(n_tiles)))
    return ifd(*tags, after=after + struct.pack(f"<{n_tiles}L", *[each] * n_tiles) + tiles)


def picture_in_tiles() -> bytes:
    """The picture as a TIFF of two by two tiles."""
    padded = np.pad(picture(), ((0, 128 - HEIGHT), (0, 128 - WIDTH), (0, 0)))
    packed = [zlib.compress(padded[y : y + 64, x : x + 64].tobytes()) for y in (0, 64) for x in (0, 64)]
    longest = max(map(len, packed))
    return tiled_tiff(WIDTH, HEIGHT, 64, b"".join(tile.ljust(longest, b"\0") for tile in packed), 4)


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    """An 8-bit BMP, run-length coded."""
    start = 54 + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + info + bytes(value for i in range(256) for value in (i, i, i, 0)) + runs


def gif_of_frames(count: int) -> bytes:
    """The picture as the first of many frames. The others have one pixel."""
    content = encode(Image.fromarray(picture()).quantize(256), "GIF")
    dot = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return content[:-1] + dot * (count - 1) + b";"


def webp_of_frames(count: int, canvas_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """The picture as the first of many frames. The others have one pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    def less_one(*values: int) -> bytes:
        return b"".join((value - 1).to_bytes(3, "little") for value in values)

    def frame(pixels: np.ndarray) -> bytes:
        size = less_one(pixels.shape[1], pixels.shape[0])
        return chunk(b"ANMF", bytes(6) + size + bytes(4) + encode(pixels, "WEBP", lossless=True)[12:])

    body = b"WEBP" + chunk(b"VP8X", b"\2\0\0\0" + less_one(*canvas_wh)) + chunk(b"ANIM", bytes(6))
    body += frame(picture()) + frame(picture()[:1, :1]) * (count - 1)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def of_claimed_size(content: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC whose header claims that size."""
    start = content.index(b"ispe") + 8
    return content[:start] + struct.pack(">II", width, height) + content[start + 8 :]


def damaged(content: bytes, index: int, damage: Callable[[int], int]) -> bytes:
    """The content with one byte changed."""
    changed = bytearray(content)
    changed[index] = damage(changed[index])
    return bytes(changed)


def insert(content: bytes, before: bytes, stray: bytes, *, last: bool = False) -> bytes:
    """The content with stray bytes before the first (or last) occurrence of some bytes."""
    index = content.rindex(before) if last else content.index(before)
    return content[:index] + stray + content[index:]


@functools.cache
def good_samples() -> tuple[Sample, ...]:
    """Files that are decoded."""
    return tuple(_good_samples())


def _good_samples() -> Iterator[Sample]:
    rgb = picture()
    luma = grey(rgb)
    image = Image.fromarray(rgb)

    def good(name: str, content: bytes, format: str, expected: np.ndarray = rgb, error: float = 0.0) -> Sample:
        return Sample(name, content, DECODED, format, expected, error)

    yield good("plain.jpg", jpeg(), "jpeg", error=1)
    yield good("subsampled.jpg", jpeg(subsampling=2), "jpeg", error=4)
    yield good("progressive.jpg", jpeg(progressive=True), "jpeg", error=1)
    yield good("restarts.jpg", jpeg(restart_marker_rows=1), "jpeg", error=1)
    yield good("grey.jpg", encode(image.convert("L"), "JPEG", quality=95), "jpeg", luma, 1)
    yield good("rgb.jpg", jpeg(keep_rgb=True), "jpeg", error=1)
    yield good("cmyk.jpg", encode(Image.fromarray(cmyk(rgb), "CMYK"), "JPEG", quality=95), "jpeg", error=3)
    yield good("ycck.jpg", ycck_jpeg(), "jpeg", error=3)
    yield good("several.mpo.jpg", encode(rgb, "MPO", quality=95, save_all=True, append_images=[image.rotate(180)]),
               "jpeg", error=4)
    yield good("flat.jpg", flat_jpeg(), "jpeg", np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    yield good("bytes-after-end.jpg", jpeg() + b"trailer" * 9, "jpeg", error=1)
    yield good("stray-bytes-in-header.jpg", insert(jpeg(), b"\xff\xdb", b"\0abc"), "jpeg", error=1)
    yield good("stray-bytes-before-end.jpg", insert(jpeg(progressive=True), b"\xff\xd9", b"\0abc", last=True),
               "jpeg", error=1)
    for name, content in jpeg_quirks():
        yield good(f"quirk-{name}.jpg", content, "jpeg", error=4)
    yield good("odd-jfif-version.jpg", jpeg().replace(b"JFIF\0\1", b"JFIF\0\x09"), "jpeg", error=1)
    for name, body, orientation in broken_exifs():
        seen = np.rot90(rgb, -1) if orientation == 6 else rgb
        yield Sample(f"exif-{name}.jpg", broken_exif(body), DECODED, "jpeg", seen, 1, orientation)
        yield Sample(f"exif-{name}.png", png_with(png_chunk(b"eXIf", body)), DECODED, "png", seen, 0, orientation)
    two = [jpeg_segment(0xE1, b"Exif\0\0" + ifd((ORIENTATION_TAG, 3, 1, value))) for value in (1, 6)]
    yield Sample("exif-twice.jpg", jpeg_with(*two), DECODED, "jpeg", rgb, 1, 1)
    yield good("exif-orientation-99.jpg", turned("JPEG", 99, quality=95, subsampling=0), "jpeg", error=1)

    profiles = {"srgb": srgb_profile(), "junk": b"junk" * 99, "2-mb": random.Random(3).randbytes(2 << 20)}
    for name, profile in profiles.items():
        yield good(f"profile-{name}.jpg", jpeg(icc_profile=profile), "jpeg", error=1)
        yield good(f"profile-{name}.png", encode(rgb, "PNG", icc_profile=profile), "png")
        yield good(f"profile-{name}.webp", encode(rgb, "WEBP", lossless=True, icc_profile=profile), "webp")
        yield good(f"profile-{name}.tif", encode(rgb, "TIFF", icc_profile=profile), "tiff")
    avif = encode(rgb, "AVIF", quality=95, subsampling="4:4:4", icc_profile=srgb_profile())
    yield good("profile-srgb.avif", avif, "avif", error=4)

    yield good("plain.png", encode(rgb, "PNG"), "png")
    yield good("interlaced.png", interlaced_png(), "png")
    yield good("16-greys.png", encode(image.convert("L").quantize(16), "PNG", bits=4), "png",
               np.asarray(image.convert("L").quantize(16).convert("RGB")))
    yield good("animated.png", encode(rgb, "PNG", save_all=True, append_images=[image.rotate(180)]), "png")
    yield good("unknown-chunk.png", png_with(png_chunk(b"teSt", b"of somebody's own")), "png")
    yield good("comment-of-wrong-checksum.png", png_with(png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"), "png")
    yield good("grey.png", encode(image.convert("L"), "PNG"), "png", luma)
    yield good("black-and-white.png", encode(image.convert("1"), "PNG"), "png",
               np.asarray(image.convert("1").convert("RGB")))
    palette = image.quantize(256)
    palette_rgb = np.asarray(palette.convert("RGB"))
    yield good("palette.png", encode(palette, "PNG"), "png", palette_rgb)
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    opacity = alpha[..., None] / 255
    over_white = (rgb * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    grey_over_white = (luma * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    rgba = np.dstack([rgb, alpha])
    yield good("alpha.png", encode(rgba, "PNG"), "png", over_white, 1)
    yield good("grey-alpha.png", encode(np.dstack([luma[..., 0], alpha]), "PNG"), "png", grey_over_white, 1)
    holed_rgb = np.where(np.asarray(palette)[..., None] == np.asarray(palette)[0, 0], 255, palette_rgb)
    yield good("palette-transparent.png", encode(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])),
               "png", holed_rgb)
    yield good("colour-transparent.png", encode(rgb, "PNG", transparency=(0, 0, 0)), "png",
               np.where((rgb == 0).all(axis=2, keepdims=True), 255, rgb))
    deep = rgb.astype(np.uint16) * 256 + 77
    yield good("16-bit.png", by_opencv(".png", deep), "png")
    yield good("16-bit-alpha.png", by_opencv(".png", np.dstack([deep, np.full_like(deep[..., 0], 65535)])), "png")
    deep_grey = luma[..., 0].astype(np.uint16) * 256 + 77
    yield good("16-bit-grey.png", encode(Image.fromarray(deep_grey), "PNG"), "png", luma)

    yield good("lossy.webp", encode(rgb, "WEBP", quality=95), "webp", error=4)
    yield good("lossless.webp", encode(rgb, "WEBP", lossless=True), "webp")
    yield good("alpha.webp", encode(rgba, "WEBP", lossless=True, exact=True), "webp", over_white, 1)
    yield good("animated.webp", encode(rgb, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(180)]),
               "webp")

    yield good("plain.bmp", encode(rgb, "BMP"), "bmp")
    yield good("palette.bmp", encode(palette, "BMP"), "bmp", palette_rgb)
    yield good("grey.bmp", encode(image.convert("L"), "BMP"), "bmp", luma)

    yield good("plain.tif", encode(rgb, "TIFF"), "tiff")
    yield good("lzw.tif", encode(rgb, "TIFF", compression="tiff_lzw"), "tiff")
    yield good("jpeg.tif", encode(rgb, "TIFF", compression="jpeg", quality=95), "tiff", error=4)
    yield good("fax.tif", encode(image.convert("1"), "TIFF", compression="group4"), "tiff",
               np.asarray(image.convert("1").convert("RGB")))
    yield good("cmyk.tif", encode(Image.fromarray(cmyk(rgb), "CMYK"), "TIFF"), "tiff", error=2)
    yield good("alpha.tif", encode(rgba, "TIFF"), "tiff", over_white, 1)
    yield good("big.tif", encode(rgb, "TIFF", big_tiff=True), "tiff")
    yield good("tiles.tif", picture_in_tiles(), "tiff")
    yield good("page-is-its-own-next.tif", page_loop(), "tiff")
    yield good("pages.tif", encode(rgb, "TIFF", save_all=True, append_images=[image.rotate(180)]), "tiff")
    yield good("16-bit.tif", by_opencv(".tiff", deep), "tiff")
    yield good("16-bit-grey.tif", encode(Image.fromarray(deep_grey), "TIFF"), "tiff", luma)
    yield good("float-to-1.tif", encode(Image.fromarray(luma[..., 0].astype(np.float32) / luma.max()), "TIFF"), "tiff",
               (luma.astype(np.float64) * 255 / luma.max()).round().astype(np.uint8), 1)
    yield good("float-to-255.tif", encode(Image.fromarray(luma[..., 0].astype(np.float32)), "TIFF"), "tiff", luma)
    yield good("32-bit.tif", encode(Image.fromarray(luma[..., 0].astype(np.int32) * 257), "TIFF"), "tiff", luma, 1)

    yield good("plain.gif", encode(palette, "GIF"), "gif", palette_rgb, 1)
    yield good("animated.gif", encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), "gif",
               palette_rgb, 1)
    yield good("frame-larger-than-screen.gif", gif_of_screen(1, 1), "gif", palette_rgb, 1)
    yield good("runs.bmp", bmp_of_runs(4, 2, b"\2\7\2\0\0\0\1\x63\3\0\0\1"), "bmp",
               np.repeat(np.array([[0x63, 0, 0, 0], [7, 7, 0, 0]], np.uint8)[..., None], 3, axis=2))
    yield good("plain.avif", encode(rgb, "AVIF", quality=95, subsampling="4:4:4"), "avif", error=4)
    yield good("alpha.avif", encode(rgba, "AVIF", quality=100, subsampling="4:4:4"), "avif", over_white, 4)
    if HAS_HEIF:
        for orientation in range(1, 9):
            # libheif turns the pixels itself. The plugin then reports 1.
            yield Sample(f"orientation-{orientation}.heic", heic(orientation), DECODED, "heic", rgb, 4, 1)

    for orientation in range(1, 9):
        for format, error, options in (
            ("JPEG", 1, {"quality": 95, "subsampling": 0}),
            ("PNG", 0, {}),
            ("WEBP", 0, {"lossless": True}),
            ("TIFF", 0, {}),
            ("AVIF", 4, {"quality": 95, "subsampling": "4:4:4"}),
        ):
            content = turned(format, orientation, **options)
            name = f"orientation-{orientation}.{format.lower()}"
            expected = None if (format, orientation) == ("AVIF", 1) else orientation   # AVIF does not store 1
            yield Sample(name, content, DECODED, format.lower(), rgb, error, expected)

    early = turned("PNG", 6)
    start = early.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(early[start : start + 4], "big")
    late = insert(early[:start] + early[end:], b"\0\0\0\0IEND", early[start:end])
    yield Sample("exif-behind-pixels.png", late, DECODED, "png", rgb, 0, 6)

    yield good("no-extension", jpeg(), "jpeg", error=1)
    yield good("upper-case.JPG", jpeg(), "jpeg", error=1)
    yield good("png-named.jpg", encode(rgb, "PNG"), "png")
    yield good("jpeg-named.png", jpeg(), "jpeg", error=1)
    yield good("webp-named.heic", encode(rgb, "WEBP", lossless=True), "webp")
    yield good("avif-named.gif", avif, "avif", error=4)
    yield good("bmp-named.webp", encode(rgb, "BMP"), "bmp")
    yield good("tiff-named.bmp", encode(rgb, "TIFF"), "tiff")
    yield good("gif-named.tif", encode(palette, "GIF"), "gif", palette_rgb, 1)
    for format in ("PNG", "WEBP", "BMP", "TIFF", "GIF"):
        options = {"lossless": True} if format == "WEBP" else {}
        content = encode(palette if format == "GIF" else rgb, format, **options) + b"trailer" * 9
        yield good(f"bytes-after-end.{format.lower()}", content, format.lower(),
                   palette_rgb if format == "GIF" else rgb, 1)
    dot = np.array([[[200, 100, 50]]], np.uint8)
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"):
        yield good(f"one-pixel.{format.lower()}", encode(dot, format), format.lower(), dot, 6)
    line = np.full((1, 60_000, 3), (200, 100, 50), np.uint8)
    for format in ("PNG", "JPEG", "BMP", "TIFF", "GIF"):
        for name, pixels in (("line", line), ("column", np.ascontiguousarray(line.swapaxes(0, 1)))):
            yield good(f"{name}.{format.lower()}", encode(pixels, format), format.lower(), pixels, 4)
    line = line[:, :16_383]                # the longest side that WebP has
    yield good("line.webp", encode(line, "WEBP", lossless=True), "webp", line)

    # Bombs that do us no harm, because their content is not unpacked or not read.
    unpacked = zlib.compress(bytes(50_000_000))
    yield good("profile-of-50-mb.png", png_with(png_chunk(b"iCCP", b"x\0\0" + unpacked)), "png")
    yield good("comment-of-50-mb.png", png_with(png_chunk(b"zTXt", b"x\0\0" + unpacked)), "png")
    yield good("text-of-50-mb.png", png_with(png_chunk(b"iTXt", b"x\0\1\0\0\0" + unpacked)), "png")
    comments = [png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000)))] * 100
    yield good("100-comments-of-1-mb.png", png_with(*comments), "png")
    yield good("50000-comments.jpg", jpeg_with(jpeg_segment(0xFE, b"") * 50_000), "jpeg", error=1)
    yield good("50000-exifs.jpg", jpeg_with(jpeg_segment(0xE1, b"Exif\0\0") * 50_000), "jpeg", error=1)
    yield good("50000-chunks.png", png_with(png_chunk(b"teSt", b"") * 50_000), "png")
    tags = [(0x9000 + i, 7, 500_000, 8 + 2 + 12 * 500 + 4) for i in range(500)]      # 500 tags share one half megabyte
    yield good("exif-of-250-mb.png", png_with(png_chunk(b"eXIf", ifd(*tags, after=bytes(500_000)))), "png")
    yield good("10000-frames.gif", gif_of_frames(10_000), "gif", palette_rgb, 1)
    yield good("10000-frames.webp", webp_of_frames(10_000), "webp")


def broken_exifs() -> Iterator[tuple[str, bytes, int | None]]:
    """Names, broken EXIF blocks, and the orientation that can still be read from each."""
    turned = (ORIENTATION_TAG, 3, 1, 6)
    yield "is-text", b"this is no TIFF", None
    yield "is-empty", b"", None
    yield "is-cut", b"II*\0\x08\0\0\0\x05\0\x12\x01", None
    yield "loops", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", None
    yield "is-its-own-next", ifd(turned)[:-4] + struct.pack("<L", 8), 6
    yield "starts-beyond-the-end", b"II*\0\xf0\xff\xff\xff", None
    yield "big-endian", ifd((ORIENTATION_TAG, 3, 1, 6), order=">"), 6
    yield "orientation-0", ifd((ORIENTATION_TAG, 3, 1, 0)), None
    yield "orientation-9", ifd((ORIENTATION_TAG, 3, 1, 9)), None
    yield "orientation-is-long", ifd((ORIENTATION_TAG, 4, 1, 6)), 6
    yield "orientation-is-text", ifd((ORIENTATION_TAG, 2, 2, b"6\0")), None
    yield "orientation-is-negative", ifd((ORIENTATION_TAG, 8, 1, b"\xfa\xff")), None
    yield "orientation-is-nan", ifd((ORIENTATION_TAG, 11, 1, b"\0\0\xc0\x7f")), None
    yield "orientation-is-a-pair", ifd((ORIENTATION_TAG, 3, 2, b"\6\0\1\0")), 6
    yield "orientation-has-no-value", ifd((ORIENTATION_TAG, 3, 0, 6)), None
    yield "orientation-of-unknown-type", ifd((ORIENTATION_TAG, 99, 1, 6)), None
    yield "offset-beyond-the-end", ifd((0x010F, 2, 100, 0xFFFFFFF0), turned), 6
    yield "count-of-4-billion", ifd((0x010F, 2, 0xFFFFFFFF, 8), turned), 6
    yield "says-65535-tags", b"II*\0\x08\0\0\0\xff\xff" + ifd(turned)[10:], 6


def srgb_profile() -> bytes:
    """An ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def page_loop() -> bytes:
    """The picture as a TIFF whose page is its own next page."""
    content = encode(picture(), "TIFF")
    (start,) = struct.unpack_from("<L", content, 4)
    end = start + 2 + 12 * struct.unpack_from("<H", content, start)[0]
    return content[:end] + struct.pack("<L", start) + content[end + 4 :]


def gif_of_screen(width: int, height: int) -> bytes:
    """The picture as a GIF whose screen has another size."""
    content = encode(Image.fromarray(picture()).quantize(256), "GIF")
    return content[:6] + struct.pack("<HH", width, height) + content[10:]


def heic(orientation: int = 1) -> bytes:
    """The picture as HEIC with turned pixels. Needs pillow-heif."""
    import pillow_heif

    image = Image.fromarray(picture())
    if orientation in _STORED:
        image = image.transpose(_STORED[orientation])
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, exif=exif.tobytes())
    return buffer.getvalue()


def bad_samples() -> Iterator[Sample]:
    """Files that are not decoded, and files that may or may not be."""
    rgb = picture()
    yield Sample("empty.jpg", b"", frozenset({(Status.UNREADABLE, "empty file")}))
    no_images = {
        "text.jpg": b"This is not an image.\n" * 50,
        "page.png": b"<!doctype html><html><body>404</body></html>",
        "drawing.svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros.jpg": bytes(5000),
        "one-byte.jpg": b"\xff",
        "archive.jpg": b"PK\x03\x04" + bytes(100),
        "movie.jpg": struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(100),
        "icon.png": encode(rgb, "ICO"),
        "jpeg2000.jpg": encode(rgb, "JPEG2000"),
        "bm-is-text.bmp": b"BM is how this text begins, and no bitmap follows.",
        "byte-before.jpg": b"\n" + jpeg(),
        "line-ends-changed.png": encode(rgb, "PNG").replace(b"\x89PNG\r\n", b"?PNG\n", 1),
    }
    for name, content in no_images.items():
        yield Sample(name, content, NO_IMAGE)
    yield Sample("12-bit.jpg", flat_jpeg(process=0xC1, bits=12), unsupported("jpeg", "12 bits a sample"), "jpeg")
    for process, name in ((0xC3, "lossless"), (0xC5, "hierarchical"), (0xCB, "lossless")):
        content = jpeg().replace(b"\xff\xc0", b"\xff" + bytes([process]), 1)
        yield Sample(f"process-{process:x}.jpg", content, unsupported("jpeg", name), "jpeg")
    raw_tags = TiffImagePlugin.ImageFileDirectory_v2()
    raw_tags.tagtype[50706] = 1
    raw_tags[50706] = b"\1\4\0\0"
    yield Sample("raw.tif", encode(rgb, "TIFF", tiffinfo=raw_tags), unsupported("tiff", "a camera's raw file"), "tiff")
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), rgb.tobytes())
    yield Sample("lab.tif", encode(lab, "TIFF"), unsupported("tiff", "colours given as LAB"), "tiff")
    yield Sample("3-bit.tif", tiff_of_size(10, 10).replace(b"\2\1\3\0\1\0\0\0\x08", b"\2\1\3\0\1\0\0\0\3"),
                 unsupported("tiff", "a variant we do not decode"), "tiff")
    if not HAS_HEIF:
        brands = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic"
        needed = frozenset({(Status.UNSUPPORTED, "HEIC needs pillow-heif: pip install pillow-heif")})
        yield Sample("any.heic", brands + bytes(100), needed, "heic")

    whole = small_files()
    for extension, (format, content) in whole.items():
        for end in range(64, len(content), 64):
            outcomes = unreadable(format, CUT_OFF) | (DECODED if pixels_end(extension, content) <= end else frozenset())
            yield Sample(f"cut-at-{end}.{extension}", content[:end], outcomes, format)
        yield Sample(f"cut-after-32-bytes.{extension}", content[:32], unreadable(format, CUT_OFF), format)
        rng = random.Random(extension)
        bits = {*rng.sample(range(8 * min(len(content), 200)), 12), *rng.sample(range(8 * len(content)), 20)}
        for bit in sorted(bits):
            flipped = damaged(content, bit // 8, functools.partial(operator.xor, 1 << bit % 8))
            yield Sample(f"bit-{bit}-flipped.{extension}", flipped, any_damage(format))
    for extension in ("jpg", "progressive.jpg", "cmyk.jpg"):
        content = whole[extension][1]
        yield Sample(f"cut-and-ended.{extension}", content[: len(content) * 3 // 4] + b"\xff\xd9",
                     unreadable("jpeg", DAMAGED_PIXELS), "jpeg")
        zeroed = content[: len(content) * 3 // 4] + bytes(len(content) // 8) + content[len(content) * 7 // 8 :]
        yield Sample(f"zeros-inside.{extension}", zeroed, unreadable("jpeg", DAMAGED_PIXELS), "jpeg")
    for kind, content in (("jpg", jpeg()), ("progressive.jpg", jpeg(progressive=True)), ("scans.jpg", in_scans(jpeg())),
                          ("restarts.jpg", jpeg(restart_marker_rows=1))):
        for share in (0.5, 0.8, 0.97):
            part = content[: int(len(content) * share)]
            for name, rest in (("zeros", bytes(len(content) - len(part))), ("ones", b"\xff" * 4096),
                               ("a-trailer", b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_DataSEFH\0\0SEFT"),
                               ("the-next-picture", content)):
                outcomes = unreadable("jpeg", CUT_OFF, DAMAGED_PIXELS)
                yield Sample(f"cut-at-{share}-then-{name}.{kind}", part + rest, outcomes, "jpeg")
    whole_scans = jpeg(progressive=True)
    yield Sample("last-scan-missing.jpg", whole_scans[: whole_scans.rindex(b"\xff\xc4")],
                 unreadable("jpeg", CUT_OFF), "jpeg")
    in_rows = jpeg(restart_marker_rows=1)
    rows = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", in_rows)]
    yield Sample("rows-missing.jpg", in_rows[: rows[3]] + in_rows[rows[4] :],
                 unreadable("jpeg", DAMAGED_PIXELS), "jpeg")
    stray = insert(jpeg(), b"\xff\xdb", b"\0abc")
    yield Sample("stray-bytes-and-cut.jpg", stray[: len(stray) // 2], unreadable("jpeg", CUT_OFF), "jpeg")
    yield Sample("stray-bytes-and-cut-and-ended.jpg", stray[: len(stray) // 2] + b"\xff\xd9",
                 unreadable("jpeg", DAMAGED_PIXELS), "jpeg")
    for name, content in (
        ("only-soi", b"\xff\xd8"),
        ("only-soi-and-eoi", b"\xff\xd8\xff\xd9"),
        ("only-ff", b"\xff\xd8" + b"\xff" * 5000),
        ("filled-with-zeros", jpeg()[:600] + bytes(5_000_000)),
    ):
        yield Sample(f"{name}.jpg", content, unreadable("jpeg", CUT_OFF), "jpeg")
    png = whole["png"][1]
    yield Sample("flipped-pixels.png", damaged(png, len(png) // 2, lambda byte: byte ^ 0x40),
                 unreadable("png", DAMAGED_PIXELS), "png")
    yield Sample("one-row-of-5000.png", png_of_size(5_000, 5_000), DECODED, "png")      # Pillow leaves the rest black
    yield Sample("no-height.jpg", jpeg_of_size(120, 0), unreadable("jpeg", DAMAGED_HEADER), "jpeg")
    yield Sample("no-width.png", png_of_size(0, 10), unreadable("png", DAMAGED_HEADER), "png")
    yield Sample("no-width.tif", tiff_of_size(0, 10), unreadable("tiff", DAMAGED_HEADER), "tiff")
    yield Sample("no-width.bmp", bmp_of_runs(0, 10, b"\0\1"), unreadable("bmp", DAMAGED_HEADER), "bmp")
    yield Sample("negative-width.bmp", bmp_of_runs(-10, 10, b"\0\1"),
                 too_large("bmp", "run-length coded and more than 65535 pixels wide"), "bmp")
    yield Sample("says-65535-tags.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(1000), unreadable("tiff", CUT_OFF), "tiff")
    far_away = b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(100)
    yield Sample("starts-beyond-all-memory.tif", far_away, unreadable("tiff", CUT_OFF), "tiff")
    same = [(1000 + i, 7, 500_000, 8 + 2 + 12 * 500 + 4) for i in range(500)]
    yield Sample("tags-of-250-mb.tif", ifd(*same, after=bytes(500_000)), unreadable("tiff", DAMAGED_HEADER), "tiff")
    yield from bombs()


@functools.cache
def small_files() -> dict[str, tuple[str, bytes]]:
    """A small good file of every kind, by extension, with its format. Tests cut and damage these."""
    noise = np.random.default_rng(7).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    palette = Image.fromarray(noise).quantize(64)
    rgb = picture()
    files = {
        "jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "cmyk.jpg": encode(Image.fromarray(cmyk(rgb), "CMYK"), "JPEG", quality=75),
        "png": encode(noise, "PNG"),
        "palette.png": encode(palette, "PNG", transparency=3),
        "16-bit.png": by_opencv(".png", noise.astype(np.uint16) * 256),
        "webp": encode(noise, "WEBP", lossless=True),
        "lossy.webp": encode(rgb, "WEBP"),
        "animated.webp": webp_of_frames(2),
        "bmp": encode(noise, "BMP"),
        "tif": encode(noise, "TIFF"),
        "lzw.tif": encode(noise, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode(noise, "TIFF", compression="jpeg"),
        "gif": encode(palette, "GIF"),
        "avif": encode(rgb, "AVIF"),
    }
    if HAS_HEIF:
        files["heic"] = heic()
    formats = {"jpg": "jpeg", "tif": "tiff"}
    return {name: (formats.get(name.split(".")[-1], name.split(".")[-1]), content) for name, content in files.items()}


def pixels_end(extension: str, content: bytes) -> int:
    """A cut after this byte may do no harm: it loses the last chunk of a PNG, or the end marker of a GIF."""
    return len(content) - {"png": 16, "gif": 2}.get(extension.split(".")[-1], 0)


def bombs() -> Iterator[Sample]:
    """Small files that claim to need gigabytes or hours."""
    for name, content in (
        ("png", png_of_size(50_000, 50_000)),
        ("largest.png", png_of_size(2**31 - 1, 2**31 - 1)),
        ("jpg", jpeg_of_size(65_000, 65_000)),
        ("gif", gif_of_screen(65_535, 65_535)),
        ("webp", webp_of_frames(1, (16_384, 16_384))),
        ("bmp", encode(picture(), "BMP")[:18] + struct.pack("<ii", 60_000, -60_000) + encode(picture(), "BMP")[26:]),
        ("tif", tiff_of_size(60_000, 60_000)),
        ("largest.tif", tiff_of_size(2**32 - 1, 2**32 - 1)),
        ("big.tif", tiff_of_size(2**32 - 1, 2**32 - 1, big=True)),
        ("avif", of_claimed_size(encode(picture(), "AVIF"), 16_384, 16_384)),
        *([("heic", of_claimed_size(heic(), 65_000, 65_000))] if HAS_HEIF else []),
    ):
        format = {"jpg": "jpeg", "tif": "tiff"}.get(name.split(".")[-1], name.split(".")[-1])
        yield Sample(f"bomb.{name}", content, TOO_MANY_PIXELS, format)
    runs = too_large("bmp", "run-length coded and more than 65535 pixels wide")
    yield Sample("skips-255-long-rows.bmp", bmp_of_runs(200_000_000, 1, b"\0\2\0\xff" * 4 + b"\0\1"), runs, "bmp")
    yield Sample("101-scans.jpg", jpeg_of_scans(101), too_large("jpeg", "more than 100 scans"), "jpeg")
    yield Sample("10000-scans.jpg", jpeg_of_scans(10_000, 4000), too_large("jpeg", "more than 100 scans"), "jpeg")
    packed = zlib.compress(bytes(1000))
    yield Sample("tile-of-gigabytes.tif", tiled_tiff(100, 100, 26_000, packed, 1),
                 too_large("tiff", f"tiles over the limit of {MAX_PIXELS} pixels"), "tiff")
    yield Sample("5-million-strips.tif", tiff_of_size(100, 100, (324, 4, 5_000_000, 400)),
                 too_large("tiff", "more than 1000000 strips or tiles"), "tiff")
    yield Sample("million-segments.jpg", jpeg_with(jpeg_segment(0xFE, b"") * 1_000_000),
                 too_large("jpeg", "more than 1000000 segments"), "jpeg")
    yield Sample("million-chunks.png", png_with(png_chunk(b"teSt", b"") * 1_000_000),
                 too_large("png", "more than 1000000 chunks"), "png")


@functools.cache
def samples() -> tuple[Sample, ...]:
    """All samples, good and bad."""
    return (*good_samples(), *bad_samples())


# Names that are hard for paths, URIs, globs, shells, terminals, tables or HTML. Each file is a good JPEG.
ODD_NAMES = (
    "with space.jpg",
    " space at both ends .jpg ",
    "quotes '\".jpg",
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "tab\t.jpg",
    "bell\a and delete\x7f.jpg",
    "\x1b[2J\x1b]0;title\a.jpg",
    "right to left \u202egnp.jpg",
    "zero\u200bwidth\ufeff.jpg",
    "<img src=x onerror=alert(1)> & <b>.jpg",
    "javascript:alert(1).jpg",
    "percent %20 %2F %.jpg",
    "%s %d {} {0} ${HOME} $(id) `id`.jpg",
    "hash # question ? colon : semicolon ;.jpg",
    "a.jpg?endpoint_override=http:host&anonymous=true.jpg",
    "shard.tar#member.jpg",
    "s3:bucket.jpg",
    "C:\\photo.jpg",
    "comma, and; 'drop table faces --.jpg",
    "glob [a-z] * {b}.jpg",
    "back\\slash.jpg",
    "-dash.jpg",
    "--config.jpg",
    "~tilde $HOME.jpg",
    "größe 北京 🙂.jpg",
    "composed \u00e9.jpg",
    "decomposed e\u0301.jpg",
    "many.dots...jpg",
    "x" * 251 + ".jpg",
    "é" * 125 + ".jpg",
)
ODD_BYTES = (
    b"not-utf-8 \xff\xfe.jpg",
    b"latin-1 caf\xe9 %41.jpg",
    b"a surrogate \xed\xa0\x80.jpg",
    b"too long a slash \xc0\xaf.jpg",
    b"cut character \xe5\x8c.jpg",
)
PATH_MAX = 4096              # bytes of a path, with its terminating zero


def build_corpus(folder: Path) -> list[tuple[bytes, frozenset[Outcome]]]:
    """Write all samples into a folder. Returns the relative name and the possible outcomes of each.

    Also written, and left out by a listing: a FIFO, a hidden file, a text file, an empty folder.
    """
    expected: dict[bytes, frozenset[Outcome]] = {}
    for sample in samples():
        (folder / sample.name).write_bytes(sample.content)
        expected[os.fsencode(sample.name)] = sample.outcomes
    for name in (*map(os.fsencode, ODD_NAMES), *ODD_BYTES):
        (folder / os.fsdecode(name)).write_bytes(jpeg())
        expected[name] = DECODED
    nested = folder / "folder.jpg" / "deeper"
    nested.mkdir(parents=True)
    (nested / "inside.jpg").write_bytes(jpeg())
    expected[b"folder.jpg/deeper/inside.jpg"] = DECODED
    (folder / "empty-folder.jpg").mkdir()
    longest, too_long = write_long_paths(folder)
    expected[longest], expected[too_long] = DECODED, fetch_failed("file name too long")
    (folder / "link.jpg").symlink_to("plain.jpg")
    expected[b"link.jpg"] = DECODED
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    expected[b"broken-link.jpg"] = fetch_failed("no such file or directory")
    (folder / "link-to-itself.jpg").symlink_to("link-to-itself.jpg")
    expected[b"link-to-itself.jpg"] = fetch_failed("too many levels of symbolic links")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "link-to-fifo.jpg").symlink_to("fifo.jpg")
    expected[b"link-to-fifo.jpg"] = fetch_failed("not a regular file")
    (folder / ".hidden.jpg").write_bytes(jpeg())
    (folder / "notes.txt").write_text("not an image")
    (folder / "secret.jpg").write_bytes(jpeg())
    (folder / "secret.jpg").chmod(0)
    # Root can read it all the same.
    expected[b"secret.jpg"] = fetch_failed("permission denied") if os.geteuid() else DECODED
    return sorted(expected.items())


def write_long_paths(folder: Path) -> tuple[bytes, bytes]:
    """Two deeply nested files: one whose path has the greatest length, and one that is a byte longer."""
    inside, descriptor = b"", os.open(folder, os.O_RDONLY)
    root = len(os.fsencode(folder)) + 1
    while (left := PATH_MAX - 1 - root - len(inside)) > 255:
        part = b"d" * min(200, left - 20)
        os.mkdir(part, dir_fd=descriptor)
        below = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        inside, descriptor = inside + part + b"/", below
    names = [b"p" * (left + more - 4) + b".jpg" for more in (0, 1)]
    for name in names:
        file = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
        os.write(file, jpeg())
        os.close(file)
    os.close(descriptor)
    return inside + names[0], inside + names[1]
