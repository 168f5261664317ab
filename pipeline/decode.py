"""Turn the bytes of image files into upright RGB pixels, in bounded memory, one record for every file."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from pipeline.batch import NO_PIXELS, Fetched, FetchFailure, ImageBatch, ImageRecord, Status, TodoRow

FetchRows = Callable[[Sequence[TodoRow]], Generator[Fetched | FetchFailure, None, None]]
"""To-do rows to one answer each, in their order; closing the generator stops what it began."""

BATCH_IMAGES = 64
BATCH_BYTES = 256 << 20

_STRIP_PIXELS = 1 << 20           # Pillow's pixels become RGB a strip at a time, so that no second full copy exists
_ORIENTATION_TAG = 0x0112
_START_OF_SCAN = 0xDA             # the JPEG marker that ends the header

# Bytes a pixel that Pillow holds while it decodes: its own storage has 4 for RGB; the others decode a whole canvas and
# hand it over through one or two buffers.
_PILLOW_BYTES = {"png": 4, "bmp": 4, "gif": 8, "tiff": 8, "jpeg": 4, "webp": 20, "avif": 12, "heic": 12}

_PILLOW_CLASSES: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}

_UNSUPPORTED_VARIANT = re.compile(r"unknown pixel mode|cannot handle|unsupported|not supported", re.I)

# What `_strip_to_rgb` can turn into RGB.
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "F",
          "I;16", "I;16B", "I;16L", "I;16N"}

_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


class DecodeError(Exception):
    """An image that cannot be decoded: its status, the reason, and what was known of it by then."""

    def __init__(
        self, status: Status, reason: str, *, format: str | None = None, size_wh: tuple[int, int] | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.format = format
        self.size_wh = size_wh


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says of itself before its pixels are decoded."""

    format: str
    width: int                        # upright, at the original size, pixels
    height: int
    exif_orientation: int | None      # 1 to 8; None where the file has none that makes sense
    decode_scale: float               # 1, 0.5, 0.25 or 0.125
    work_bytes: int                   # what decoding needs for a while, the pixels it returns not counted
    turned: bool                      # the pixels must still be turned by exif_orientation

    @property
    def decoded_wh(self) -> tuple[int, int]:
        """Size of the pixels that decoding returns; scaled sizes are rounded up."""
        divisor = round(1 / self.decode_scale)
        return -(-self.width // divisor), -(-self.height // divisor)

    @property
    def decoded_bytes(self) -> int:
        width, height = self.decoded_wh
        return 3 * width * height


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image: pixels (h, w, 3) uint8 RGB, C-contiguous, of the size `header.decoded_wh`."""

    header: Header
    pixels: np.ndarray


def decode_image(content: bytes, *, max_pixels: int, min_side_px: int | None) -> Decoded:
    """Upright RGB pixels of one image file; of an animation its first picture, of a multi-page TIFF its first page.

    min_side_px: JPEGs are decoded at the smallest of 1, 1/2, 1/4 and 1/8 that keeps the longest side at or above it;
        None decodes at full size.
    Transparency is laid over white. 16-bit samples keep their upper 8 bits. Float and 32-bit samples are scaled to
    what their highest value implies: 1 (floats only), 255, 65535, or itself. Colour profiles are ignored.
    Raises `DecodeError`: unsupported (not a format we decode), unreadable (broken, cut off, empty), too_large.
    """
    header = read_header(content, max_pixels=max_pixels, min_side_px=min_side_px)
    return Decoded(header, decode_pixels(content, header))


def prepare_pillow() -> None:
    """Set what Pillow has one of for the whole process: no limit of its own, blocks that are given back, no chatter."""
    Image.MAX_IMAGE_PIXELS = None         # max_pixels stands in its place
    # Blocks of 16 MB, the default, stay in glibc's arenas when they are freed: four PNGs of 100 megapixels peaked at
    # 1.36 GB instead of 0.98. Above 32 MB a block is always given back.
    Image.core.set_block_size(64 << 20)
    # What Pillow warns of is either harmless or in the record's error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def sniff_format(content: bytes) -> str | None:
    """The format told by the first bytes, as in the column `format`; None for what we do not decode."""
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


def read_header(content: bytes, *, max_pixels: int, min_side_px: int | None) -> Header:
    """Format, size and orientation without decoding a pixel. Raises `DecodeError`."""
    if not content:
        raise DecodeError(Status.UNREADABLE, "empty file")
    format = sniff_format(content)
    if format is None:
        raise DecodeError(Status.UNSUPPORTED, "not an image, or not a format we decode")
    image = _open_with_pillow(content, format)
    if image.mode not in _MODES or (format == "tiff" and _is_camera_raw(image)):
        reason = "a camera's raw file" if image.mode in _MODES else f"colours given as {image.mode}"
        raise DecodeError(Status.UNSUPPORTED, reason, format=format)
    width, height = image.size
    decode_scale, work_bytes = 1.0, _PILLOW_BYTES[format] * width * height
    if format == "jpeg" and (jpeg_wh := _jpeg_size(content)):
        width, height = jpeg_wh       # libjpeg's word, since it does the decoding
        decode_scale = jpeg_scale(width, height, min_side_px)
        # libjpeg keeps all coefficients of a progressive file, 2 bytes each, whatever the scale.
        work_bytes = 2 * len(image.getbands()) * width * height if "progressive" in image.info else 0
    if width * height > max_pixels:
        reason = f"{width} × {height} pixels, the limit is {max_pixels}"
        raise DecodeError(Status.TOO_LARGE, reason, format=format, size_wh=(width, height))
    if format == "png":
        image.info.setdefault("exif", _png_exif(content))
    orientation = _exif_orientation(image)
    turned = format != "tiff"         # Pillow turns TIFFs itself, and their size is the upright one from the start
    if turned and orientation is not None and orientation >= 5:
        width, height = height, width
    return Header(format, width, height, orientation, decode_scale, work_bytes, turned)


def jpeg_scale(width: int, height: int, min_side_px: int | None) -> float:
    """The smallest of 1, 1/2, 1/4, 1/8 that keeps the longest side at or above min_side_px."""
    if min_side_px is None:
        return 1.0
    return next((1 / d for d in (8, 4, 2) if max(width, height) >= d * min_side_px), 1.0)


def decode_pixels(content: bytes, header: Header) -> np.ndarray:
    """The upright pixels (h, w, 3) uint8 RGB of a file whose header was read. Raises `DecodeError`."""
    if header.format == "jpeg" and (size_wh := _jpeg_size(content)):
        pixels = _decode_jpeg(content, size_wh, header.decode_scale)
    else:
        pixels = _decode_with_pillow(content, header.format)
    return upright(pixels, header.exif_orientation) if header.turned else pixels


def upright(pixels: np.ndarray, exif_orientation: int | None) -> np.ndarray:
    """Pixels as stored, turned and mirrored as the EXIF orientation says; C-contiguous."""
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


# JPEG: libjpeg-turbo by simplejpeg, which scales while it decodes and says when a file was cut off.


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height, or None for the few kinds that simplejpeg cannot decode and Pillow perhaps can."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    except (ValueError, KeyError):    # KeyError: a colour space it has no name for
        return None
    return width, height


def _decode_jpeg(content: bytes, size_wh: tuple[int, int], scale: float) -> np.ndarray:
    try:
        return _libjpeg(content, size_wh, scale, strict=True)
    except ValueError:
        tidied = _tidy_jpeg_header(content)
    # libjpeg tells its first warning only, and a harmless one in the header would hide that pixels are missing.
    try:
        return _libjpeg(tidied, size_wh, scale, strict=True)
    except ValueError as error:
        # Stray bytes before the end marker: all blocks were there. Before any other marker they are lost blocks.
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise _bad_data(error, "jpeg") from error
        return _libjpeg(tidied, size_wh, scale, strict=False)


def _tidy_jpeg_header(content: bytes) -> bytes:
    """The same file without stray bytes between the segments of its header, and of a JFIF version that is known."""
    parts = [content[:2]]
    position = 2
    while (start := content.find(b"\xff", position)) >= 0 and start + 4 <= len(content):
        marker = content[start + 1]
        if marker == _START_OF_SCAN:
            return b"".join([*parts, content[start:]])
        if marker in (0x00, 0xFF):    # no marker
            position = start + 1
            continue
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        segment = content[start:end]
        if segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1\1" + segment[11:]
        parts.append(segment)
        position = end
    return content


def _libjpeg(content: bytes, size_wh: tuple[int, int], scale: float, *, strict: bool) -> np.ndarray:
    divisor = round(1 / scale)
    width, height = (-(-side // divisor) for side in size_wh)
    # min_factor alone is ignored; the least height and width select the factor.
    return simplejpeg.decode_jpeg(
        content, "RGB", min_height=height, min_width=width, min_factor=divisor, strict=strict
    )


# Everything else: Pillow. Its plugin is called directly, so only the format that the first bytes tell is tried.


def _open_with_pillow(content: bytes, format: str) -> ImageFile.ImageFile:
    if format == "heic":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            reason = "HEIC needs pillow-heif: pip install pillow-heif"
            raise DecodeError(Status.UNSUPPORTED, reason, format=format) from error
        image_class = HeifImageFile
    else:
        image_class = _PILLOW_CLASSES[format]
    try:
        return image_class(io.BytesIO(content))
    except MemoryError:
        raise
    except Exception as error:        # broken headers make Pillow raise nearly everything
        raise _bad_data(error, format) from error


def _decode_with_pillow(content: bytes, format: str) -> np.ndarray:
    image = _open_with_pillow(content, format)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:        # and broken pixels too
        raise _bad_data(error, format) from error
    return _to_rgb(image)


def _bad_data(error: Exception, format: str) -> DecodeError:
    """Unsupported where the decoder says that it lacks this variant, else unreadable."""
    reason = _one_line(str(error)) or type(error).__name__
    if _UNSUPPORTED_VARIANT.search(reason):
        return DecodeError(Status.UNSUPPORTED, f"a variant of {format.upper()}: {reason}", format=format)
    return DecodeError(Status.UNREADABLE, f"broken {format.upper()}: {reason}", format=format)


def _one_line(text: str) -> str:
    """Short, and without the counts that would make every cut-off file a kind of error of its own."""
    return " ".join(re.sub(r"\(\d+ bytes not processed\)", "", text).split())[:300]


def _exif_orientation(image: ImageFile.ImageFile) -> int | None:
    try:
        # Not image.getexif(): that of a PNG decodes all pixels to look for EXIF behind them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG)
    except Exception:                 # EXIF is often broken, in every way; the picture is no worse for it
        return None
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else None


def _png_exif(content: bytes) -> bytes | None:
    """The EXIF of a PNG, which may stand before or behind the pixels."""
    start = 8
    while start + 8 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] == b"eXIf":
            return b"Exif\0\0" + content[start + 8 : start + 8 + length]
        start += 12 + length
    return None


def _is_camera_raw(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF is a camera's raw file (DNG, CR2, NEF, ARW), whose first picture is a small preview."""
    tags = image.tag_v2
    reduced_preview = bool(int(tags.get(254, 0)) & 1) and 330 in tags
    return 50706 in tags or reduced_preview or image.fp.getvalue()[8:10] == b"CR"


def _to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded image, (h, w, 3) uint8 RGB, as it is stored."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    white = _white(image, rows) if image.mode in ("F", "I") else 255.0
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _strip_to_rgb(image.crop((0, top, width, bottom)), white)
    return pixels


def _strip_to_rgb(strip: Image.Image, white: float) -> np.ndarray:
    if strip.mode.startswith("I;16"):
        return (np.asarray(strip) >> 8).astype(np.uint8)[..., None]
    if strip.mode in ("F", "I"):
        samples = np.nan_to_num(np.asarray(strip, np.float64), posinf=white, neginf=0.0)
        return np.clip(samples * (255 / white) + 0.5, 0, 255).astype(np.uint8)[..., None]
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        paper = Image.new("RGBA", strip.size, "white")
        paper.alpha_composite(strip)
        strip = paper
    return np.asarray(strip.convert("RGB"))


def _white(image: Image.Image, rows: int) -> float:
    """The sample value that is white, by the highest one: 1 (floats only), 255, 65535, or that value."""
    width, height = image.size
    highest = 0.0
    for top in range(0, height, rows):
        samples = np.asarray(image.crop((0, top, width, min(top + rows, height))), np.float64)
        highest = max(highest, float(samples.max(initial=0.0, where=np.isfinite(samples))))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((white for white in whites if highest <= white), highest)


class _MemoryGate:
    """Lets threads in while what they need together stays below a limit, and one in any case."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Wait for room for n_bytes, and give it back in the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes == 0 or self._held_bytes + n_bytes <= self._limit_bytes)
            self._held_bytes += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= n_bytes
                self._changed.notify_all()


class Decode:
    """Decode the images of to-do rows by threads, one sub-batch ahead of whoever takes them.

    A sub-batch has at most batch_images images and, files and pixels together, batch_bytes bytes (one image may have
    more). Alive at once are the sub-batch that the caller works on, the next one, and what decoders need for a while,
    batch_bytes at most (one image may need more).
    """

    def __init__(
        self,
        fetch: FetchRows,
        *,
        max_pixels: int,
        min_side_px: int | None,
        threads: int,
        batch_images: int = BATCH_IMAGES,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self._fetch = fetch
        self._max_pixels = max_pixels
        self._min_side_px = min_side_px
        self._threads = threads
        self._batch_images = batch_images
        self._batch_bytes = batch_bytes
        prepare_pillow()

    def __call__(self, rows: Sequence[TodoRow]) -> Generator[ImageBatch, None, None]:
        """One record for every row, in the order of the rows. Closing the generator ends its threads."""
        gate = _MemoryGate(self._batch_bytes)

        def next_batch() -> ImageBatch | None:
            group = next(groups, None)
            if group is None:
                return None
            futures = [threads.submit(self._decode_one, *item, gate) for item in group]
            group.clear()                 # the bytes of a file go as soon as it is decoded
            decoded = [future.result() for future in futures]
            return ImageBatch(tuple(record for record, _ in decoded), tuple(pixels for _, pixels in decoded))

        with (
            closing(self._groups(rows)) as groups,
            ThreadPoolExecutor(self._threads, "decode") as threads,
            ThreadPoolExecutor(1, "decode-ahead") as ahead,
        ):
            try:
                pending = ahead.submit(next_batch)
                while (batch := pending.result()) is not None:
                    pending = ahead.submit(next_batch)
                    yield batch
                    del batch
            finally:
                threads.shutdown(wait=False, cancel_futures=True)     # of the sub-batch ahead, when closed early

    def _groups(self, rows: Sequence[TodoRow]) -> Generator[list[_Waiting], None, None]:
        """The rows' files cut into sub-batches, by what their headers say."""
        group: list[_Waiting] = []
        held_bytes = 0
        with closing(self._fetch(rows)) as answers:
            for row, answer in zip(rows, answers, strict=True):
                waiting = self._read_header(row, answer)
                _, content, header = waiting
                n_bytes = len(content or b"") + (header.decoded_bytes if header else 0)
                if group and (len(group) == self._batch_images or held_bytes + n_bytes > self._batch_bytes):
                    yield group
                    group, held_bytes = [], 0
                group.append(waiting)
                held_bytes += n_bytes
        if group:
            yield group

    def _read_header(self, row: TodoRow, answer: Fetched | FetchFailure) -> _Waiting:
        record = ImageRecord(row.uri, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
        if isinstance(answer, FetchFailure):
            return replace(record, status=answer.status, error=answer.error), None, None
        content = answer.content
        # What the listing said comes first: a file that changed since then must show up as changed in the next one.
        record = replace(
            record, etag=row.etag or answer.etag, mtime=row.mtime or answer.mtime, file_bytes=len(content)
        )
        try:
            header = read_header(content, max_pixels=self._max_pixels, min_side_px=self._min_side_px)
        except Exception as error:
            return _failed(record, error), content, None
        record = replace(
            record, width=header.width, height=header.height, format=header.format,
            exif_orientation=header.exif_orientation, decode_scale=header.decode_scale,
        )
        return record, content, header

    @staticmethod
    def _decode_one(
        record: ImageRecord, content: bytes | None, header: Header | None, gate: _MemoryGate
    ) -> tuple[ImageRecord, np.ndarray]:
        if content is None:
            return record, NO_PIXELS
        record = replace(record, sha256=hashlib.sha256(content).hexdigest())
        if header is None:
            return record, NO_PIXELS
        try:
            with gate.hold(header.work_bytes):
                return record, decode_pixels(content, header)
        except Exception as error:
            return _failed(record, error), NO_PIXELS


_Waiting = tuple[ImageRecord, bytes | None, Header | None]
"""A record, the bytes of its file where they came, and its header; without a header there is nothing to decode."""


def _failed(record: ImageRecord, error: Exception) -> ImageRecord:
    """The record of an image that could not be decoded; what is not the image's fault is `failed`."""
    if not isinstance(error, DecodeError):
        return replace(record, status=Status.FAILED, error=f"decode: {type(error).__name__}: {_one_line(str(error))}")
    record = replace(record, status=error.status, error=error.reason, format=error.format or record.format)
    if error.size_wh:
        record = replace(record, width=error.size_wh[0], height=error.size_wh[1])
    return record
