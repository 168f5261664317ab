"""Write pictures again in the format they had, with faces hidden and without their metadata."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from jobs.blur.hide import How, Region, hidden, hide_in_image
from jobs.blur.jpeg import copy_jpeg, orientation_exif, well_formed
from jobs.blur.webp import copy_webp, is_lossless
from pipeline.stages import tiff_planes
from pipeline.stages.pillow import open_image, plugin_of

KEPT = ("icc_profile", "dpi", "transparency")      # of the metadata, with the orientation; all else is left out
UNKNOWN_QUALITY = 90                               # of WebP, AVIF and HEIC, whose files do not say theirs

_MODES: Mapping[str, frozenset[str]] = MappingProxyType({
    "jpeg": frozenset({"L", "RGB", "CMYK"}),
    "png": frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}),
    "webp": frozenset({"RGB", "RGBA"}),
    "bmp": frozenset({"1", "L", "P", "RGB"}),
    "tiff": frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"}),
    "gif": frozenset({"L", "P"}),
    "avif": frozenset({"RGB", "RGBA"}),
    "heic": frozenset({"RGB", "RGBA"}),
})  # fmt: skip
_SIGNIFICANT_BITS = {"1": (1,), "I;16": (16,), "I": (32,), "F": (32,)}
_PNG_BITS_AT, _PNG_HEADER_END = 24, 33
_BITS_TAG, _PHOTOMETRIC_TAG, _EXTRA_SAMPLES_TAG, _WHITE_IS_ZERO = 258, 262, 338, 0


class NotWritable(Exception):   # noqa: N818  (an outcome, not an error)
    """A picture that cannot be written as it was. The message is a reason that is the same for all of its kind."""


def copy_without_faces(
    content: bytes, format: str, orientation: int | None, regions: Sequence[Region], how: How
) -> bytes:
    """The file again, in its format, with these regions hidden and with no metadata but KEPT and the orientation.

    Raises NotWritable, and DecodeError.
    """
    copy_same = {"jpeg": copy_jpeg, "webp": copy_webp}.get(format)
    if copy_same and not regions and (same := copy_same(content, orientation)):
        return same
    picture = well_formed(content) if format == "jpeg" else content
    if picture is None:
        raise NotWritable("JPEG with a fault: written again it would lose a part")
    image = open_image(picture, format)
    if _has_more_frames(image, format, content):
        raise NotWritable("several frames or pages, of which jobs.extract reads the first alone")
    if format == "png" and content[_PNG_BITS_AT] == 16 and image.mode != "I;16":
        return _deep_png(content, orientation, regions, how)
    _check_kind(image, format, content)
    options = _options(image, format, content)
    if exif := orientation_exif(orientation):
        options |= {} if format in ("tiff", "heic") else {"exif": exif}      # their pixels are turned as they are read
    kept: dict[Any, Any] = _kept(content, format)
    _load(image, format)
    image.info = kept
    hide_in_image(image, regions, how)
    _hide_transparent(image)
    return _saved(image, format, options | {name: value for name, value in kept.items() if name != "transparency"})


def _has_more_frames(image: ImageFile.ImageFile, format: str, content: bytes) -> bool:
    """Whether the file is an animation, or has pages. Further pictures beside a JPEG or a HEIC are left out."""
    if format == "png":
        return content.find(b"acTL", 0, content.find(b"IDAT")) > 0      # a chunk that is not in `image` any more
    return format not in ("jpeg", "heic") and getattr(image, "n_frames", 1) > 1


def _check_kind(image: ImageFile.ImageFile, format: str, content: bytes) -> None:
    """Raises NotWritable for what would be written otherwise than it was."""
    if image.mode not in _MODES[format]:
        raise NotWritable(f"{format.upper()} with colours given as {image.mode}")
    if format == "tiff":
        tags = image.tag_v2      # type: ignore[attr-defined]
        bits = _SIGNIFICANT_BITS.get(image.mode, (8,))
        undeclared = image.mode == "RGBA" and not tags.get(_EXTRA_SAMPLES_TAG)
        inverted = tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
        if set(tags.get(_BITS_TAG, (1,))) != set(bits) or tiff_planes.split(content) or undeclared or inverted:
            raise NotWritable("TIFF of a kind that cannot be written as it was")


def _load(image: ImageFile.ImageFile, format: str) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:        # broken pixels or palettes make Pillow raise almost any error
        raise NotWritable(f"{format.upper()} with a fault: written again it would lose a part") from error


def _kept(content: bytes, format: str) -> dict[str, Any]:
    """What is kept of the metadata; nothing if it is broken."""
    try:
        info = plugin_of(format)(io.BytesIO(content)).info
    except Exception:                 # broken metadata makes Pillow raise almost any error; the picture is still good
        return {}
    return {name: info[name] for name in KEPT if info.get(name) is not None}


def _options(image: ImageFile.ImageFile, format: str, content: bytes) -> dict[str, Any]:
    """How the file was made, as far as it says so."""
    match format:
        case "jpeg":
            return _jpeg_options(image)
        case "webp":
            lossless = is_lossless(content)
            return {"lossless": lossless, "quality": UNKNOWN_QUALITY, "exact": lossless}
        case "tiff":
            compression = image.info.get("compression")
            return {"compression": None if compression == "raw" else compression}
        case "avif" | "heic":
            return {"quality": UNKNOWN_QUALITY}
    return {}


def _jpeg_options(image: ImageFile.ImageFile) -> dict[str, Any]:
    """The tables and the sampling of a JPEG: the quality, and what makes most of it the same again."""
    tables = image.quantization      # type: ignore[attr-defined]
    sampling = JpegImagePlugin.get_sampling(image)
    return {
        "qtables": [tables[number] for number in sorted(tables)],
        "subsampling": max(sampling, 0),         # -1: a rare one that Pillow cannot write; 0 keeps all colours
        "progressive": bool(image.info.get("progressive")),
        "keep_rgb": image.mode == "RGB" and image.info.get("adobe_transform") == 0,
    }


def _hide_transparent(image: Image.Image) -> None:
    """Take the colours away that cannot be seen: jobs.extract does not see faces there."""
    if image.mode in ("RGBA", "LA"):
        unseen = image.getchannel("A").point([255] + 255 * [0])
        image.paste((0,) * len(image.mode), mask=unseen)


def _saved(image: Image.Image, format: str, options: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    try:
        match format:
            case "heic":
                _save_heic(image, out, options)
            case "tiff":
                image.copy().save(out, "TIFF", **options)         # the copy does not know the tags of the file
            case _:
                image.save(out, format.upper(), **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NotWritable(f"{format.upper()}: cannot be written: {' '.join(str(error).split())[:200]}") from error
    return out.getvalue()


def _save_heic(image: Image.Image, out: io.BytesIO, options: Mapping[str, Any]) -> None:
    import pillow_heif

    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    bare.info = {name: value for name, value in options.items() if name == "icc_profile"}
    pillow_heif.from_pillow(bare).save(out, quality=options["quality"])


def _deep_png(content: bytes, orientation: int | None, regions: Sequence[Region], how: How) -> bytes:
    """A PNG with 16 bits a colour, which Pillow would read with 8."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise NotWritable("PNG of a kind that cannot be written as it was")
    has_alpha = pixels.shape[2] == 4
    for region in regions:
        part = pixels[region.y1 : region.y2, region.x1 : region.x2]
        part[...] = hidden(part, region, how)
        if has_alpha and how is How.FILL:
            part[..., 3] = 65535
    if has_alpha:
        pixels[pixels[..., 3] == 0] = 0
    written = bytes(cv2.imencode(".png", pixels)[1])
    exif = orientation_exif(orientation).removeprefix(b"Exif\0\0")
    added = _png_chunk(b"eXIf", exif) if exif else b""
    if profile := _kept(content, "png").get("icc_profile"):
        added += _png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))
    return written[:_PNG_HEADER_END] + added + written[_PNG_HEADER_END:]


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + kind + payload + zlib.crc32(kind + payload).to_bytes(4, "big")
