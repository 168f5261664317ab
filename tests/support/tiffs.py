"""TIFFs of every layout, written here because Pillow writes only some of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


def packbits(content: bytes) -> bytes:
    """Literal runs only."""
    parts = [content[i : i + 128] for i in range(0, len(content), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def lzw(content: bytes) -> bytes:
    """Codes of nine bits, with the table cleared before it needs ten."""
    codes = [code for i in range(0, len(content), 200) for code in (256, *content[i : i + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


COMPRESSIONS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (1, bytes), "lzw": (5, lzw), "deflate": (8, zlib.compress), "packbits": (32773, packbits),
}


@dataclass(frozen=True)
class Layout:
    """How a picture is kept. tile: the side of its tiles, None for strips. extra: the tag ExtraSamples."""

    planar: bool = True
    compression: str = "none"
    predictor: bool = False
    tile: int | None = None
    order: str = "<"
    big: bool = False
    photometric: int = 2
    extra: tuple[int, ...] | None = None
    strip_rows: int = 16


def tiff(samples: np.ndarray, layout: Layout) -> bytes:
    """Samples (h, w, n) of any number type as a TIFF."""
    height, width, n = samples.shape
    code, pack = COMPRESSIONS[layout.compression]
    planes = [samples[..., i : i + 1] for i in range(n)] if layout.planar else [samples]
    pieces = [pack(_bytes(piece, layout)) for plane in planes for piece in _pieces(plane, layout)]
    side, kind = layout.tile, samples.dtype
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("L", [width]), 257: ("L", [height]), 258: ("H", [8 * kind.itemsize] * n), 259: ("H", [code]),
        262: ("H", [layout.photometric]), 277: ("H", [n]), 284: ("H", [2 if layout.planar else 1]),
        317: ("H", [2 if layout.predictor else 1]), 339: ("H", [{"u": 1, "i": 2, "f": 3}[kind.kind]] * n),
        324 if side else 273: ("L", [0] * len(pieces)), 325 if side else 279: ("L", [len(piece) for piece in pieces]),
    }
    tags |= {322: ("L", [side]), 323: ("L", [side])} if side else {278: ("L", [layout.strip_rows])}
    if layout.extra is not None:
        tags[338] = ("H", list(layout.extra))
    return _file(tags, pieces, layout)


def _pieces(plane: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    height, width = plane.shape[:2]
    side = layout.tile
    if side is None:
        yield from (plane[top : top + layout.strip_rows] for top in range(0, height, layout.strip_rows))
        return
    padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    for top in range(0, height, side):
        yield from (padded[top : top + side, left : left + side] for left in range(0, width, side))


def _bytes(piece: np.ndarray, layout: Layout) -> bytes:
    if layout.predictor:
        piece = np.concatenate([piece[:, :1], np.diff(piece, axis=1)], axis=1).astype(piece.dtype)
    return piece.astype(piece.dtype.newbyteorder(layout.order)).tobytes()


def _file(tags: dict[int, tuple[str, list[int]]], pieces: list[bytes], layout: Layout) -> bytes:
    order, word = layout.order, "Q" if layout.big else "L"
    width, count = struct.calcsize(order + word), "Q" if layout.big else "H"
    start = 16 if layout.big else 8
    after = start + struct.calcsize(order + count) + len(tags) * (4 + 2 * width) + width
    sizes = {tag: struct.calcsize(order + kind) * len(numbers) for tag, (kind, numbers) in tags.items()}
    at = after + sum(size for size in sizes.values() if size > width)
    offsets = [at + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    tags |= {tag: ("L", offsets) for tag in (273, 324) if tag in tags}
    entries, arrays = b"", b""
    for tag in sorted(tags):
        kind, numbers = tags[tag]
        value = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(value) > width:
            value, arrays = struct.pack(order + word, after + len(arrays)), arrays + value
        entries += struct.pack(f"{order}HH{word}", tag, {"H": 3, "L": 4}[kind], len(numbers))
        entries += value.ljust(width, b"\0")
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, start) if layout.big else struct.pack(f"{order}HL", 42, start)
    mark = b"II" if order == "<" else b"MM"
    return b"".join([mark, head, struct.pack(order + count, len(tags)), entries, bytes(width), arrays, *pieces])
