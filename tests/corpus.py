"""Image files of every kind that we read and that goes wrong, built in code, each with what must become of it."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from pipeline.batch import GOOD, Status

DECODED = frozenset(GOOD)
UNREADABLE = frozenset({Status.UNREADABLE})
UNSUPPORTED = frozenset({Status.UNSUPPORTED})
TOO_LARGE = frozenset({Status.TOO_LARGE})
FETCH_FAILED = frozenset({Status.FETCH_FAILED})

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

WIDTH, HEIGHT = 120, 80
ORIENTATION_TAG = 0x0112

# How Pillow turns an upright picture into the stored one, from the EXIF standard: the inverse of what readers do.
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
    """One image file, and what must become of it.

    picture: the upright pixels it shows, where it is decoded; mean_error: how far the decoded ones may be off, mean
    absolute difference; orientation: the EXIF orientation to be told.
    """

    name: str
    content: bytes
    statuses: frozenset[Status]
    format: str | None = None
    picture: np.ndarray | None = None
    mean_error: float = 0.0
    orientation: int | None = None


def picture() -> np.ndarray:
    """An upright picture (80, 120, 3) that every turn and mirroring changes: ramps and a blue disc at the top left."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    blue = 220 * ((x - 30) ** 2 + (y - 25) ** 2 < 15**2)
    return np.stack([x * 2, y * 3, blue], axis=-1).astype(np.uint8)


def grey(rgb: np.ndarray) -> np.ndarray:
    """The luma of a picture, in three equal channels."""
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))


def encode(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """An image file by Pillow."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int, **options: object) -> bytes:
    """A file whose pixels are stored turned, and whose EXIF orientation says how."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    image = Image.fromarray(picture())
    if orientation in _STORED:
        image = image.transpose(_STORED[orientation])
    return encode(image, format, exif=exif, **options)


def jpeg(**options: object) -> bytes:
    """The picture as a good JPEG."""
    return encode(picture(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def cmyk(rgb: np.ndarray) -> np.ndarray:
    """Inks (h, w, 4) uint8 that give the colours back on white paper, with as much black as there can be."""
    black = 255 - rgb.max(axis=2, keepdims=True).astype(np.float64)
    inks = (255 - rgb - black) / np.maximum(255 - black, 1) * 255
    return np.concatenate([inks, black], axis=2).round().astype(np.uint8)


def ycck_jpeg() -> bytes:
    """A JPEG as Photoshop writes them: inks stored inverted, as YCCK, marked by Adobe's transform 2."""
    inks = cmyk(picture())
    luma_chroma = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    raw = np.dstack([luma_chroma, 255 - inks[..., 3]])
    content = bytearray(encode(Image.fromarray(255 - raw, "CMYK"), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def by_opencv(extension: str, pixels_rgb: np.ndarray) -> bytes:
    """A file by OpenCV, which unlike Pillow writes 16-bit colours."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels_rgb.shape[2]]
    return cv2.imencode(extension, cv2.cvtColor(pixels_rgb, order))[1].tobytes()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is that large, with the pixels of one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 + 3 * width))) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header says it is that large."""
    content = bytearray(jpeg())
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def broken_exif(body: bytes) -> bytes:
    """A good JPEG with these bytes where EXIF should be."""
    segment = b"Exif\0\0" + body
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg()[2:]


def damaged(content: bytes, position: float, damage: Callable[[int], int]) -> bytes:
    """One byte changed, the one that lies at this fraction of the file."""
    changed = bytearray(content)
    index = int(len(content) * position)
    changed[index] = damage(changed[index])
    return bytes(changed)


def insert(content: bytes, before: bytes, stray: bytes, *, last: bool = False) -> bytes:
    """Stray bytes put in before the first (or last) occurrence of some bytes."""
    index = content.rindex(before) if last else content.index(before)
    return content[:index] + stray + content[index:]


def good_samples() -> Iterator[Sample]:
    """Files that are decoded."""
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
    yield good("bytes-after-end.jpg", jpeg() + b"trailer" * 9, "jpeg", error=1)
    yield good("stray-bytes-in-header.jpg", insert(jpeg(), b"\xff\xdb", b"\0abc"), "jpeg", error=1)
    yield good("stray-bytes-before-end.jpg", insert(jpeg(progressive=True), b"\xff\xd9", b"\0abc", last=True),
               "jpeg", error=1)
    yield good("odd-jfif-version.jpg", jpeg().replace(b"JFIF\0\1", b"JFIF\0\x09"), "jpeg", error=1)
    yield good("exif-is-text.jpg", broken_exif(b"this is no TIFF"), "jpeg", error=1)
    yield good("exif-is-cut.jpg", broken_exif(b"II*\0\x08\0\0\0\x05\0\x12\x01"), "jpeg", error=1)
    yield good("exif-loops.jpg", broken_exif(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), "jpeg", error=1)
    yield good("exif-orientation-99.jpg", turned("JPEG", 99, quality=95, subsampling=0), "jpeg", error=1)

    yield good("plain.png", encode(rgb, "PNG"), "png")
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
    yield good("plain.avif", encode(rgb, "AVIF", quality=95, subsampling="4:4:4"), "avif", error=4)
    yield good("alpha.avif", encode(rgba, "AVIF", quality=100, subsampling="4:4:4"), "avif", over_white, 4)
    if HAS_HEIF:
        yield good("plain.heic", heic(), "heic", error=4)

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
            told = None if (format, orientation) == ("AVIF", 1) else orientation   # AVIF has no mark for 1
            yield Sample(name, content, DECODED, format.lower(), rgb, error, told)

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
    dot = np.array([[[200, 100, 50]]], np.uint8)
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"):
        yield good(f"one-pixel.{format.lower()}", encode(dot, format), format.lower(), dot, 6)
    line = np.full((1, 60_000, 3), (200, 100, 50), np.uint8)
    yield good("line.png", encode(line, "PNG"), "png", line)
    yield good("line.jpg", encode(line, "JPEG", quality=95), "jpeg", line, 4)


def heic() -> bytes:
    """The picture as HEIC; needs pillow-heif."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture())).save(buffer, quality=95)
    return buffer.getvalue()


def bad_samples() -> Iterator[Sample]:
    """Files that are not decoded, and files of which either may be said."""
    rgb = picture()
    noise = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    yield Sample("empty.jpg", b"", UNREADABLE)
    yield Sample("text.jpg", b"This is not an image.\n" * 50, UNSUPPORTED)
    yield Sample("page.png", b"<!doctype html><html><body>404</body></html>", UNSUPPORTED)
    yield Sample("drawing.svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNSUPPORTED)
    yield Sample("zeros.jpg", bytes(5000), UNSUPPORTED)
    yield Sample("archive.jpg", b"PK\x03\x04" + bytes(100), UNSUPPORTED)
    yield Sample("movie.jpg", struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(100), UNSUPPORTED)
    yield Sample("icon.png", encode(rgb, "ICO"), UNSUPPORTED)
    yield Sample("jpeg2000.jpg", encode(rgb, "JPEG2000"), UNSUPPORTED)
    yield Sample("bm-is-text.bmp", b"BM is how this text begins, and no bitmap follows.", UNSUPPORTED)
    twelve_bit = bytearray(jpeg())
    twelve_bit[twelve_bit.index(b"\xff\xc0") + 4] = 12
    yield Sample("12-bit.jpg", bytes(twelve_bit), UNSUPPORTED, "jpeg")
    raw_tags = TiffImagePlugin.ImageFileDirectory_v2()
    raw_tags.tagtype[50706] = 1
    raw_tags[50706] = b"\1\4\0\0"
    yield Sample("raw.tif", encode(rgb, "TIFF", tiffinfo=raw_tags), UNSUPPORTED, "tiff")
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), rgb.tobytes())
    yield Sample("lab.tif", encode(lab, "TIFF"), UNSUPPORTED, "tiff")

    whole = {
        "jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "cmyk.jpg": encode(Image.fromarray(cmyk(rgb), "CMYK"), "JPEG", quality=95),
        "png": encode(noise, "PNG"),
        "webp": encode(noise, "WEBP", lossless=True),
        "lossy.webp": encode(noise, "WEBP"),
        "bmp": encode(noise, "BMP"),
        "tif": encode(noise, "TIFF"),
        "lzw.tif": encode(noise, "TIFF", compression="tiff_lzw"),
        "gif": encode(Image.fromarray(noise).quantize(256), "GIF"),
        "avif": encode(noise, "AVIF"),
    }
    if HAS_HEIF:
        whole["heic"] = heic()
    for extension, content in whole.items():
        format = {"jpg": "jpeg", "tif": "tiff"}.get(extension.rpartition(".")[2], extension.rpartition(".")[2])
        yield Sample(f"cut-at-half.{extension}", content[: len(content) // 2], UNREADABLE, format)
        yield Sample(f"cut-at-tenth.{extension}", content[: len(content) // 10], UNREADABLE, format)
        yield Sample(f"cut-after-32-bytes.{extension}", content[:32], UNREADABLE, format)
    for extension in ("jpg", "progressive.jpg", "cmyk.jpg"):
        content = whole[extension]
        yield Sample(f"cut-and-ended.{extension}", content[: len(content) // 2] + b"\xff\xd9", UNREADABLE, "jpeg")
        yield Sample(f"end-marker-missing.{extension}", content[:-2], UNREADABLE, "jpeg")
        zeroed = content[: len(content) // 2] + bytes(len(content) // 4) + content[len(content) * 3 // 4 :]
        yield Sample(f"zeros-inside.{extension}", zeroed, UNREADABLE, "jpeg")
    stray = insert(jpeg(), b"\xff\xdb", b"\0abc")
    yield Sample("stray-bytes-and-cut.jpg", stray[: len(stray) // 2], UNREADABLE, "jpeg")
    yield Sample("stray-bytes-and-cut-and-ended.jpg", stray[: len(stray) // 2] + b"\xff\xd9", UNREADABLE, "jpeg")
    yield Sample("only-soi.jpg", b"\xff\xd8", UNREADABLE, "jpeg")
    yield Sample("flipped-pixels.png", damaged(whole["png"], 0.5, lambda byte: byte ^ 0x40), UNREADABLE, "png")
    for extension, content in whole.items():
        for tenth in range(10):
            flipped = damaged(content, tenth / 10 + 0.05, lambda byte: byte ^ 0x10)
            yield Sample(f"flipped-{tenth}.{extension}", flipped, DECODED | UNREADABLE | UNSUPPORTED | TOO_LARGE)

    yield Sample("bomb.png", png_of_size(50_000, 50_000), TOO_LARGE, "png")
    yield Sample("bomb.jpg", jpeg_of_size(65_000, 65_000), TOO_LARGE, "jpeg")
    yield Sample("bomb.gif", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + whole["gif"][10:], TOO_LARGE, "gif")
    yield Sample("lies-about-size.png", png_of_size(5_000, 5_000), DECODED | UNREADABLE, "png")
    yield Sample("no-height.jpg", jpeg_of_size(120, 0), UNREADABLE, "jpeg")


# Names that trip readers of paths, URIs, globs, shells and HTML; each is a good JPEG.
ODD_NAMES = (
    "with space.jpg",
    "quotes '\".jpg",
    "new\nline.jpg",
    "<img src=x onerror=alert(1)> & <b>.jpg",
    "percent %20 %2F %.jpg",
    "hash # question ? colon : semicolon ;.jpg",
    "glob [a-z] * {b}.jpg",
    "back\\slash.jpg",
    "-dash.jpg",
    "~tilde $HOME.jpg",
    "größe 北京 🙂.jpg",
    "decomposed é.jpg",
    "many.dots...jpg",
    "x" * 251 + ".jpg",
)
NOT_UTF8_NAME = b"not-utf-8 \xff\xfe.jpg"


def build_corpus(folder: Path) -> list[tuple[bytes, frozenset[Status]]]:
    """Write all of it into a folder. Returns each file's name relative to the folder, and the statuses it may get.

    Beside them lies what a listing leaves out: a FIFO, a hidden file, a text with its own extension.
    """
    expected: dict[bytes, frozenset[Status]] = {}
    for sample in (*good_samples(), *bad_samples()):
        (folder / sample.name).write_bytes(sample.content)
        expected[os.fsencode(sample.name)] = sample.statuses
    for name in (*map(os.fsencode, ODD_NAMES), NOT_UTF8_NAME):
        (folder / os.fsdecode(name)).write_bytes(jpeg())
        expected[name] = DECODED
    nested = folder / "folder.jpg" / "deeper"
    nested.mkdir(parents=True)
    (nested / "inside.jpg").write_bytes(jpeg())
    expected[b"folder.jpg/deeper/inside.jpg"] = DECODED
    (folder / "link.jpg").symlink_to("plain.jpg")
    expected[b"link.jpg"] = DECODED
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    expected[b"broken-link.jpg"] = FETCH_FAILED
    (folder / "link-to-itself.jpg").symlink_to("link-to-itself.jpg")
    expected[b"link-to-itself.jpg"] = FETCH_FAILED
    os.mkfifo(folder / "fifo.jpg")
    (folder / "link-to-fifo.jpg").symlink_to("fifo.jpg")
    expected[b"link-to-fifo.jpg"] = FETCH_FAILED
    (folder / ".hidden.jpg").write_bytes(jpeg())
    (folder / "notes.txt").write_text("not an image")
    (folder / "secret.jpg").write_bytes(jpeg())
    (folder / "secret.jpg").chmod(0)
    expected[b"secret.jpg"] = FETCH_FAILED if os.geteuid() else DECODED      # root reads everything
    return sorted(expected.items())
