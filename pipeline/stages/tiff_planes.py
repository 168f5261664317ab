"""Split a TIFF that keeps each colour in a plane of its own into grey TIFFs, one for each plane.

Pillow decodes planes of 8 bits only, and those not always; grey pictures it decodes in every depth and compression.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.batch import Status
from pipeline.stages import headers
from pipeline.stages.codec import DecodeError

COLOURS = {1: "L", 2: "RGB", 5: "CMYK"}          # PhotometricInterpretation: BlackIsZero, RGB, inks
ALPHA = {1: "a", 2: "A"}                         # ExtraSamples: multiplied with the colours already, or not
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
_OFFSETS, _BYTE_COUNTS = (273, 324), (279, 325)  # of strips and of tiles
_BLACK_IS_ZERO = 1


@dataclass(frozen=True, slots=True)
class Planes:
    """files: a grey TIFF for each plane, that of the colours and then perhaps that of the opacity.

    mode: of the Pillow image that they form together: L, LA, La, RGB, RGBA, RGBa, CMYK.
    """

    files: tuple[bytes, ...]
    mode: str


def split(content: bytes) -> Planes | None:
    """The planes of a TIFF; None if it has no planes. Raises `DecodeError` and BombError.

    Planes beyond the colours are ignored, unless the first of them is declared to be opacity.
    """
    directory = headers.tiff_directory(content)
    if directory is None or directory.number(_PLANAR, 1) != 2 or directory.number(_SAMPLES, 1) < 2:
        return None
    photometric, samples = directory.number(_PHOTOMETRIC, -1), directory.number(_SAMPLES, 1)
    mode = COLOURS.get(photometric, "")
    bits = directory.numbers(_BITS)
    if not mode or samples < len(mode) or len(set(bits)) != 1:
        raise DecodeError(Status.UNSUPPORTED, "TIFF: a variant we do not decode", format="tiff")
    extra = directory.numbers(_EXTRA)
    if mode in ("L", "RGB") and samples > len(mode) and extra and extra[0] in ALPHA:
        mode += ALPHA[extra[0]]
    return Planes(tuple(_plane(content, directory, number, samples) for number in range(len(mode))), mode)


def _plane(content: bytes, directory: headers.TiffDirectory, number: int, samples: int) -> bytes:
    """The file with a second directory at its end, which names the pieces of one plane, and which comes first."""
    one = {_BITS: 1, _SAMPLE_FORMAT: 1}
    changed = {_PHOTOMETRIC: [_BLACK_IS_ZERO], _SAMPLES: [1], _PLANAR: [1]}
    for tag in directory.tags():
        if tag in one:
            changed[tag] = directory.numbers(tag)[:1]
        if tag in (*_OFFSETS, *_BYTE_COUNTS):
            pieces = directory.numbers(tag)
            each = len(pieces) // samples
            changed[tag] = pieces[number * each : (number + 1) * each]
    offsets, sizes = (next((changed[tag] for tag in tags if tag in changed), []) for tags in (_OFFSETS, _BYTE_COUNTS))
    if len(offsets) != len(sizes) or not offsets:
        raise DecodeError(Status.UNREADABLE, "TIFF: damaged header", format="tiff")
    if max(map(sum, zip(offsets, sizes, strict=True))) > len(content):
        raise DecodeError(Status.UNREADABLE, "TIFF: cut off before the picture ends", format="tiff")
    return directory.rewritten(content, changed, without={_EXTRA})
