"""Decode all other formats with Pillow.

The plugin of the detected format is called directly, so that Pillow tries no other format.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
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
    _imaging,
)

from pipeline.batch import Status
from pipeline.stages import headers, tiff_planes
from pipeline.stages.codec import (
    ORIENTATION_TAG,
    DecodeError,
    StoredImage,
    decode_failure,
    exif_orientation,
    valid_orientation,
)

_STRIP_PIXELS = 1 << 20     # pixels converted to RGB at a time, so that there is no second full copy

# Bytes per pixel that Pillow holds while it decodes. Its own storage has 4 for RGB; the formats with more also decode
# into one or two buffers.
_WORK_BYTES = {"png": 4, "bmp": 4, "gif": 8, "tiff": 8, "jpeg": 4, "webp": 20, "avif": 12, "heic": 12}

_OpenImage = Callable[[io.BytesIO], ImageFile.ImageFile]

_PLUGINS: dict[str, _OpenImage] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}

# Pillow's modes that `_strip_to_rgb` can convert.
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "F",
          "I;16", "I;16B", "I;16L", "I;16N"}

_BITS_TAG, _COMPRESSION_TAG, _PHOTOMETRIC_TAG, _SAMPLES_TAG, _EXTRA_SAMPLES_TAG = 258, 259, 262, 277, 338
_SAMPLE_FORMAT_TAG = 339
_UNCOMPRESSED, _WHITE_IS_ZERO, _SIGNED = 1, 0, 2
_SUBFILE_TYPE_TAG, _SUB_IFDS_TAG, _DNG_VERSION_TAG = 254, 330, 50706


def prepare_pillow() -> None:
    """Set Pillow's process-wide options: no pixel limit, large memory blocks, no warnings."""
    Image.MAX_IMAGE_PIXELS = None         # we check max_pixels ourselves
    # glibc keeps freed blocks of 16 MB, the default: four PNGs of 100 megapixels peaked at 1.36 GB instead of 0.98.
    # It always returns blocks above 32 MB.
    _imaging.set_block_size(64 << 20)
    # Pillow warns of harmless faults, and of faults that the record's error names too.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def read_stored(content: bytes, format: str) -> StoredImage:
    """The facts of a file's header. Raises `DecodeError`, BombError."""
    exif, tile_pixels, planes = None, 0, None
    match format:
        case "png":
            exif = headers.read_png(content).exif
        case "tiff":
            if content.startswith(b"MM\0+"):      # Pillow takes it for a classic TIFF
                raise DecodeError(Status.UNSUPPORTED, "TIFF: a variant we do not decode", format=format)
            tile_pixels, planes = headers.read_tiff(content).tile_pixels, tiff_planes.split(content)
        case "bmp":
            headers.check_bmp(content)
    image = _open(planes.files[0] if planes else content, format, content)
    if image.mode not in _MODES:
        raise DecodeError(Status.UNSUPPORTED, f"{format.upper()}: colours given as {image.mode}", format=format)
    width, height = image.size
    if not width * height:
        raise decode_failure("no pixels", format, content, "header")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if _is_camera_raw(image, content):
            raise DecodeError(Status.UNSUPPORTED, "TIFF: a camera's raw file", format=format)
        if image.mode == "L" and _tag(image, _SAMPLE_FORMAT_TAG) == (_SIGNED,):
            raise DecodeError(Status.UNSUPPORTED, "TIFF: a variant we do not decode", format=format)
        orientation = valid_orientation(_tag(image, ORIENTATION_TAG))
    else:
        orientation = exif_orientation(exif or image.info.get("exif"))
    work_bytes = _WORK_BYTES[format] * max(width * height, tile_pixels)
    if format == "png" or planes:
        work_bytes += len(content)    # `headers.strip_metadata` may copy the file; the planes are copies
    if planes:
        work_bytes += (len(planes.files) - 1) * (len(content) + work_bytes)
    return StoredImage((width, height), orientation, work_bytes, tile_pixels=tile_pixels)


def decode(content: bytes, format: str) -> np.ndarray:
    """The pixels as stored, (h, w, 3) uint8 RGB; Pillow turns TIFFs upright. Raises `DecodeError`."""
    planes = tiff_planes.split(content) if format == "tiff" else None
    files = planes.files if planes else [content]
    images = [_open(file, format, content) for file in files]
    try:
        samples = [_loaded(image, content) for image in images]
        return _to_rgb(_merged(samples, planes.mode)) if planes else _to_rgb(samples[0])
    except MemoryError:
        raise
    except Exception as error:        # broken pixels or palettes make Pillow raise almost any error
        raise decode_failure(str(error), format, content, "pixels") from error


def _loaded(image: ImageFile.ImageFile, content: bytes) -> Image.Image:
    """The image with its pixels, without the faults of Pillow's TIFF decoder."""
    image.load()
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image
    if image.mode == "RGBA" and _tag(image, _SAMPLES_TAG) == 4 and not _tag(image, _EXTRA_SAMPLES_TAG):
        return image.convert("RGB")                  # a fourth sample that nobody declared as opacity
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" and content.startswith(b"MM") and _tag(image, _COMPRESSION_TAG) != _UNCOMPRESSED:
        values = values.byteswap()                   # libtiff has put them in this machine's order
    elif image.mode.startswith("I;16") and _tag(image, _BITS_TAG) == (12,):
        values = values << 4
    deep = Image.fromarray(values)
    if _tag(image, _PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        white = 65535 if deep.mode.startswith("I;16") else _white(deep, max(1, _STRIP_PIXELS // deep.width))
        deep = Image.fromarray((white - values).astype(values.dtype))
    return deep


def _merged(planes: Sequence[Image.Image], mode: str) -> Image.Image:
    """One image of planes that were decoded as grey ones, 8 bits a sample."""
    whites = [_white(plane, max(1, _STRIP_PIXELS // plane.width)) if plane.mode in ("F", "I") else 255.0
              for plane in planes]
    colours = max(whites[: len(planes) - mode.lower().endswith("a")])
    whites = [colours if i < len(planes) - mode.lower().endswith("a") else white for i, white in enumerate(whites)]
    return Image.merge(mode, [Image.fromarray(_strip_to_rgb(plane, white)[..., 0])
                              for plane, white in zip(planes, whites, strict=True)])


def open_image(content: bytes, format: str) -> ImageFile.ImageFile:
    """A file as Pillow sees it, without the metadata that `headers.strip_metadata` takes out. Raises `DecodeError`."""
    return _open(content, format, content)


def _open(content: bytes, format: str, whole: bytes) -> ImageFile.ImageFile:
    """The image of a file, or of a plane of the file `whole`. Raises `DecodeError`."""
    plugin = plugin_of(format)
    try:
        return plugin(io.BytesIO(headers.strip_metadata(content, format)))
    except MemoryError:
        raise
    except Exception as error:        # broken headers too
        raise decode_failure(str(error), format, whole, "header") from error


def plugin_of(format: str) -> _OpenImage:
    """What opens files of a format. Raises `DecodeError` for HEIC without pillow-heif."""
    return _heic_plugin() if format == "heic" else _PLUGINS[format]


def _heic_plugin() -> _OpenImage:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        reason = "HEIC needs pillow-heif: pip install pillow-heif"
        raise DecodeError(Status.UNSUPPORTED, reason, format="heic") from error
    plugin: _OpenImage = HeifImageFile
    return plugin


def _is_camera_raw(image: TiffImagePlugin.TiffImageFile, content: bytes) -> bool:
    """Whether a TIFF is a camera's raw file (DNG, CR2, NEF, ARW), whose first image is a small preview."""
    subfile_type = _tag(image, _SUBFILE_TYPE_TAG)
    has_preview = isinstance(subfile_type, int) and bool(subfile_type & 1) and _SUB_IFDS_TAG in image.tag_v2
    return _DNG_VERSION_TAG in image.tag_v2 or has_preview or content[8:10] == b"CR"


def _tag(image: TiffImagePlugin.TiffImageFile, number: int) -> object:
    """The value of a TIFF tag; None if it is missing or broken."""
    try:
        return image.tag_v2.get(number)
    except Exception:                 # Pillow parses a value on access; broken ones raise almost any error
        return None


def _to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded image, (h, w, 3) uint8 RGB."""
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
    """The sample value of white: the lowest of 1 (floats only), 255, 65535 that no sample exceeds, or the highest."""
    width, height = image.size
    highest = 0.0
    for top in range(0, height, rows):
        samples = np.asarray(image.crop((0, top, width, min(top + rows, height))), np.float64)
        highest = max(highest, float(samples.max(initial=0.0, where=np.isfinite(samples))))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((white for white in whites if highest <= white), highest)
