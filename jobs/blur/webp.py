"""WebP files at the level of their chunks."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.blur.jpeg import orientation_exif

_HEADER_BYTES, _EXIF_FLAG, _XMP_FLAG = 12, 0x08, 0x04
_PICTURE = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"}


def is_lossless(content: bytes) -> bool:
    """Whether the picture was stored without loss."""
    return any(kind == b"VP8L" for kind, _ in _chunks(content))


def copy_webp(content: bytes, orientation: int | None) -> bytes | None:
    """The same single picture, bit by bit, with no metadata but orientation and colour profile; None for others."""
    kept = [(kind, payload) for kind, payload in _chunks(content) if kind in _PICTURE]
    if sum(kind in (b"VP8 ", b"VP8L") for kind, _ in kept) != 1:
        return None
    if kept[0][0] == b"VP8X":
        flags = kept[0][1][0] & ~(_EXIF_FLAG | _XMP_FLAG)
        if exif := orientation_exif(orientation).removeprefix(b"Exif\0\0"):
            kept.append((b"EXIF", exif))
            flags |= _EXIF_FLAG
        kept[0] = b"VP8X", bytes([flags]) + kept[0][1][1:]
    body = b"WEBP" + b"".join(map(_chunk, *zip(*kept, strict=True)))
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = _HEADER_BYTES
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        yield content[position : position + 4], content[position + 8 : position + 8 + size]
        position += 8 + size + size % 2


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + payload + b"\0" * (len(payload) % 2)
