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
from pipeline.stages import headers

FetchRows = Callable[[Sequence[TodoRow]], Generator[Fetched | FetchFailure, None, None]]
"""To-do rows to one answer each, in their order; closing the generator stops what it began."""

BATCH_IMAGES = 64
BATCH_BYTES = 256 << 20

_STRIP_PIXELS = 1 << 20           # Pillow's pixels become RGB a strip at a time, so that no second full copy exists
_MAX_SIDE_PX = 2**31 - 1          # that the table's columns hold; a TIFF may say more
_ORIENTATION_TAG = 0x0112

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

_UNSUPPORTED_VARIANT = re.compile(r"unknown pixel mode|cannot handle|unsupported (?!marker)|not supported", re.I)

# What `_strip_to_rgb` can turn into RGB.
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "F",
          "I;16", "I;16B", "I;16L", "I;16N"}

# Of the frame header's marker, what none of our decoders or only some builds of them can do.
_JPEG_PROCESSES = {
    0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic coding",
    0xCA: "arithmetic coding", 0xCB: "lossless", 0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical",
}


class DecodeError(Exception):
    """An image that cannot be decoded: its status, the reason, and what was known of it by then.

    Reasons are few and ours, the same whatever a library says this year: they are counted by kind.
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


def read_header(content: bytes, *, max_pixels: int, min_side_px: int | None) -> Header:
    """Format, size and orientation without decoding a pixel. Raises `DecodeError`."""
    if not content:
        raise DecodeError(Status.UNREADABLE, "empty file")
    format = headers.sniff_format(content)
    if format is None:
        raise DecodeError(Status.UNSUPPORTED, "not an image, or not a format we decode")
    try:
        facts = (_jpeg_facts(content, min_side_px) if format == "jpeg" else None) or _pillow_facts(content, format)
    except headers.Overload as error:
        raise DecodeError(Status.TOO_LARGE, f"{format.upper()}: {error}", format=format) from None
    width, height = facts.size_wh
    turned = format != "tiff"         # Pillow turns TIFFs itself, and their size is the upright one from the start
    if turned and facts.exif_orientation is not None and facts.exif_orientation >= 5:
        width, height = height, width
    for what, n_pixels in (("", width * height), ("TIFF: tiles ", facts.tile_pixels)):
        if n_pixels > max_pixels:
            reason = f"{what}over the limit of {max_pixels} pixels"
            raise DecodeError(Status.TOO_LARGE, reason, format=format, size_wh=(width, height))
    return Header(format, width, height, facts.exif_orientation, facts.decode_scale, facts.work_bytes, turned)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a decoder's header says: size as stored, the EXIF orientation, and what decoding takes.

    tile_pixels: of one tile of a TIFF, which is decoded at once and may be larger than the picture.
    """

    size_wh: tuple[int, int]
    exif_orientation: int | None
    work_bytes: int
    decode_scale: float = 1.0
    tile_pixels: int = 0


def _jpeg_facts(content: bytes, min_side_px: int | None) -> _Facts | None:
    """What libjpeg, which does the decoding, makes of the header; None for the few kinds that it does not take."""
    header = headers.read_jpeg(content)
    if header is None:
        raise _bad_data("no scan", "jpeg", content, "header")
    if header.scans > headers.MAX_SCANS:
        raise headers.Overload(f"more than {headers.MAX_SCANS} scans")
    size_wh = _jpeg_size(content)
    if size_wh is None:
        return None
    # Of a file with several scans libjpeg keeps all coefficients, 2 bytes each, whatever the scale.
    work_bytes = 2 * header.components * size_wh[0] * size_wh[1] if header.scans > 1 else 0
    return _Facts(size_wh, _orientation(header.exif), work_bytes, jpeg_scale(*size_wh, min_side_px))


def _pillow_facts(content: bytes, format: str) -> _Facts:
    """What Pillow makes of the header."""
    exif, tile_pixels = None, 0
    match format:
        case "png":
            exif = headers.read_png(content).exif
        case "tiff":
            tile_pixels = headers.read_tiff(content).tile_pixels
        case "bmp":
            headers.check_bmp(content)
    image = _open_with_pillow(content, format)
    if image.mode not in _MODES:
        raise DecodeError(Status.UNSUPPORTED, f"{format.upper()}: colours given as {image.mode}", format=format)
    width, height = image.size
    if not width * height:
        raise _bad_data("no pixels", format, content, "header")
    if format == "tiff":
        if _is_camera_raw(image):
            raise DecodeError(Status.UNSUPPORTED, "TIFF: a camera's raw file", format=format)
        orientation = _valid_orientation(_tag(image, _ORIENTATION_TAG))
    else:
        orientation = _orientation(exif or image.info.get("exif"))
    work_bytes = _PILLOW_BYTES[format] * max(width * height, tile_pixels)
    if format == "png":
        work_bytes += len(content)    # a copy of the chunks that make pixels
    return _Facts((width, height), orientation, work_bytes, tile_pixels=tile_pixels)


def _orientation(exif: bytes | None) -> int | None:
    if not exif:
        return None
    try:
        parsed = Image.Exif()
        parsed.load(exif)
        return _valid_orientation(parsed.get(_ORIENTATION_TAG))
    except Exception:                 # EXIF is often broken, in every way; the picture is no worse for it
        return None


def _valid_orientation(value: object) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def is_too_large(beginning: bytes, *, max_pixels: int) -> bool:
    """Whether the beginning of a file says already that it is `too_large`, so that the rest need not be read."""
    try:
        read_header(beginning, max_pixels=max_pixels, min_side_px=None)
    except DecodeError as error:
        return error.status is Status.TOO_LARGE
    return False


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
        tidied = _tidied(content, "jpeg")
    # libjpeg tells its first warning only, and a harmless one in the header would hide that pixels are missing.
    try:
        return _libjpeg(tidied, size_wh, scale, strict=True)
    except ValueError as error:
        # Stray bytes before the end marker: all blocks were there. Before any other marker they are lost blocks.
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise _bad_data(str(error), "jpeg", content, "pixels") from error
        return _libjpeg(tidied, size_wh, scale, strict=False)


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
        return image_class(io.BytesIO(_tidied(content, format)))
    except MemoryError:
        raise
    except Exception as error:        # broken headers make Pillow raise nearly everything
        raise _bad_data(str(error), format, content, "header") from error


def _tidied(content: bytes, format: str) -> bytes:
    """The file without what a decoder would stumble over, unpack or walk through though it makes no pixel."""
    if format == "png":
        return headers.read_png(content).tidied
    if format == "jpeg" and (header := headers.read_jpeg(content)):
        return header.tidied + content[header.data_start :]
    return content


def _decode_with_pillow(content: bytes, format: str) -> np.ndarray:
    image = _open_with_pillow(content, format)
    try:
        image.load()
        return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:        # and broken pixels or palettes too
        raise _bad_data(str(error), format, content, "pixels") from error


def _bad_data(told: str, format: str, content: bytes, where: str) -> DecodeError:
    """What a decoder's message means: cut off, a variant that it lacks, or damaged in the header or the pixels."""
    name = format.upper()
    if headers.is_cut_off(content, format):
        return DecodeError(Status.UNREADABLE, f"{name}: cut off before the picture ends", format=format)
    jpeg = headers.read_jpeg(content) if format == "jpeg" else None
    if jpeg and jpeg.precision_bits in (12, 16):
        reason = f"{name}: {jpeg.precision_bits} bits a sample"
        return DecodeError(Status.UNSUPPORTED, reason, format=format)
    if jpeg and jpeg.process in _JPEG_PROCESSES:
        return DecodeError(Status.UNSUPPORTED, f"{name}: {_JPEG_PROCESSES[jpeg.process]}", format=format)
    if _UNSUPPORTED_VARIANT.search(told):
        return DecodeError(Status.UNSUPPORTED, f"{name}: a variant we do not decode", format=format)
    return DecodeError(Status.UNREADABLE, f"{name}: damaged {where}", format=format)


def _is_camera_raw(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether a TIFF is a camera's raw file (DNG, CR2, NEF, ARW), whose first picture is a small preview."""
    subfile_type = _tag(image, 254)
    reduced_preview = isinstance(subfile_type, int) and bool(subfile_type & 1) and 330 in image.tag_v2
    return 50706 in image.tag_v2 or reduced_preview or image.fp.getvalue()[8:10] == b"CR"


def _tag(image: TiffImagePlugin.TiffImageFile, number: int) -> object:
    """The value of a tag; None where it is missing or makes no sense."""
    try:
        return image.tag_v2.get(number)
    except Exception:                 # values are read when they are asked for, and broken in as many ways as EXIF
        return None


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
    For whoever watches: `files_read` counts the files that have arrived, `reading` is the uri of the one waited for.
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
        self.files_read, self.reading = 0, None
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
            for row, answer in zip(self._noted(rows), answers, strict=True):
                self.files_read += 1
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

    def _noted(self, rows: Sequence[TodoRow]) -> Generator[TodoRow, None, None]:
        for row in rows:
            self.reading = row.uri
            yield row
        self.reading = None

    def _read_header(self, row: TodoRow, answer: Fetched | FetchFailure) -> _Waiting:
        record = ImageRecord(row.uri, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
        if isinstance(answer, FetchFailure):
            return replace(record, status=answer.status, error=answer.error), None, None
        content = answer.content
        # What the listing said comes first: a file that changed since then must show up as changed in the next one.
        record = replace(
            record, etag=row.etag or answer.etag, mtime=row.mtime or answer.mtime,
            file_bytes=answer.file_bytes or len(content),
        )
        try:
            header = read_header(content, max_pixels=self._max_pixels, min_side_px=self._min_side_px)
        except Exception as error:        # a beginning alone has no sha256
            return _failed(record, error), None if answer.file_bytes else content, None
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
        reason = " ".join(str(error).split())[:300]
        return replace(record, status=Status.FAILED, error=f"decode: {type(error).__name__}: {reason}")
    record = replace(record, status=error.status, error=error.reason, format=error.format or record.format)
    if error.size_wh and max(error.size_wh) <= _MAX_SIDE_PX:
        record = replace(record, width=error.size_wh[0], height=error.size_wh[1])
    return record
