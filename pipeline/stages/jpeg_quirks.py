"""Rewrite a JPEG as its maker should have written it, without touching the data of the picture.

libjpeg warns of many faults that cost no pixel: odd numbers in a scan's header, no end mark, padding, a trailer of the
maker, a scan that comes twice. It tells only its first warning, so none of these may hide that blocks are missing. What
it still warns of in the rewritten file is real damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.stages import headers

END = b"\xff\xd9"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_TABLES = {0xC4, 0xDB}                    # Huffman and quantisation
_START_OF_SCAN, _RESTART_INTERVAL, _ADOBE = 0xDA, 0xDD, 0xEE
_SKIPPED = {0xFE, *range(0xE0, 0xF0)}     # comments and application segments
_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.S)
_MARKER_AFTER_DATA = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.S)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_NOT_SEEN = 255


def rewrite(content: bytes) -> bytes | None:
    """The JPEG with clean headers, ended after its picture. Raises BombError.

    None if scans or restarts are missing, and for rare processes.
    """
    header = headers.read_jpeg(content)
    if header is None or header.process not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
        return None
    *before, scan = _segments(header.stripped)
    frame = _Frame(next(segment for segment in before if segment[1] == header.process))
    if not frame.sampling:
        return None
    parts, interval = [header.stripped[:2]], 0
    position: int | None = header.data_start
    while position is not None and _is_scan(scan):
        for segment in before:
            if segment[1] == _RESTART_INTERVAL:
                interval = int.from_bytes(segment[4:6], "big")
            else:
                parts.append(_known_colours(segment, frame) if segment[1] == _ADOBE else segment)
        found = _MARKER_AFTER_DATA.search(content, position)
        end = found.start() if found else len(content)
        if frame.takes(scan):
            restarts = -(-frame.units(scan) // interval) - 1 if interval else 0
            data = _counted(_without_padding(content[position:end]), restarts)
            if data is None:
                return None
            parts += [b"\xff\xdd\0\4" + (interval if _RESTART.search(data) else 0).to_bytes(2, "big")]
            parts += [scan if frame.progressive else _baseline(scan), data]
        if frame.complete:
            return b"".join([*parts, END])
        before, scan, position = _next_scan(content, end)
    return b"".join([*parts, END]) if scan == END else None


class _Frame:
    """What the frame header says, and which coefficients the scans have brought so far."""

    def __init__(self, segment: bytes) -> None:
        self.progressive = segment[1] == _PROGRESSIVE
        self.height, self.width = (int.from_bytes(segment[at : at + 2], "big") for at in (5, 7))
        parts = [segment[at : at + 3] for at in range(10, len(segment) - 2, 3)]
        self.sampling = {part[0]: (max(1, part[1] >> 4), max(1, part[1] & 15)) for part in parts}
        self._low_bit = {name: np.full(64, _NOT_SEEN) for name in self.sampling}

    @property
    def complete(self) -> bool:
        """Whether every coefficient of every component is there to its last bit."""
        return all((low_bit == 0).all() for low_bit in self._low_bit.values())

    def takes(self, scan: bytes) -> bool:
        """Count what a scan brings; False if all of it was there before."""
        n = scan[4]
        first, last, bits = (0, 63, 0) if not self.progressive else tuple(scan[5 + 2 * n : 8 + 2 * n])
        brings = False
        for name in components(scan):
            low_bit = self._low_bit.get(name, np.zeros(64))[first : last + 1]
            brings |= bool((low_bit > (bits & 15)).any())
            np.minimum(low_bit, bits & 15, out=low_bit)
        return brings

    def units(self, scan: bytes) -> int:
        """The number of units between which a scan can restart."""
        widest: int = max(across for across, _ in self.sampling.values())
        highest: int = max(down for _, down in self.sampling.values())
        names = components(scan)
        if len(names) == 1:
            across, down = self.sampling.get(names[0], (1, 1))
            width, height = -(-self.width * across // widest), -(-self.height * down // highest)
            return -(-width // 8) * -(-height // 8)
        return -(-self.width // (8 * widest)) * -(-self.height // (8 * highest))


def _is_scan(segment: bytes) -> bool:
    return len(segment) > 4 and segment[4] > 0 and len(segment) >= 8 + 2 * segment[4]


def components(scan: bytes) -> Sequence[int]:
    """The names of the components in a scan."""
    return scan[5 : 5 + 2 * scan[4] : 2]


def _segments(stripped: bytes) -> Iterator[bytes]:
    position = 2
    while position < len(stripped):
        end = position + 2 + int.from_bytes(stripped[position + 2 : position + 4], "big")
        yield stripped[position:end]
        position = end


def _next_scan(content: bytes, position: int) -> tuple[list[bytes], bytes, int | None]:
    """The tables before the next scan, its header, and where its data begins.

    If there is no further scan, the place is None, and the header is `END` if the end mark is there, else empty.
    """
    tables: list[bytes] = []
    for _ in range(headers.MAX_PARTS):
        found = _MARKER.match(content, position)
        if found is None:
            break
        marker, start = content[found.end() - 1], found.end() - 2
        position = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        segment = content[start:position]
        if marker == END[1]:
            return tables, END, None
        if position > len(content) or marker not in {_START_OF_SCAN, _RESTART_INTERVAL, *_TABLES, *_SKIPPED}:
            break
        if marker == _START_OF_SCAN:
            return tables, segment, position
        if marker not in _SKIPPED:
            tables.append(segment)
        found = _MARKER.search(content, position)
        position = found.start() if found else len(content)
    return tables, b"", None


def _known_colours(adobe: bytes, frame: _Frame) -> bytes:
    """Adobe's segment with the transform that libjpeg supposes where it does not know the given one."""
    known = {3: (0, 1), 4: (0, 2)}.get(len(frame.sampling))
    if known and len(adobe) > 15 and adobe[15] not in known:
        return adobe[:15] + bytes([known[1]]) + adobe[16:]
    return adobe


def _baseline(scan: bytes) -> bytes:
    """The header of a scan with the numbers that baseline JPEGs must have, and that decoders do not read."""
    at = 5 + 2 * scan[4]
    return scan[:at] + b"\0\x3f\0" + scan[at + 3 :]


def _counted(data: bytes, restarts: int) -> bytes | None:
    """The data with its restart markers numbered from 0, and none or `restarts` of them; None if some are missing."""
    found = [restart.start() for restart in _RESTART.finditer(data)]
    if 0 < len(found) < restarts:
        return None
    counted = bytearray(data[: found[restarts]] if restarts < len(found) else data)
    for number, at in enumerate(found[:restarts]):
        counted[at + 1] = 0xD0 + number % 8
    return bytes(counted)


def _without_padding(data: bytes) -> bytes:
    """The data of a scan without the zeros after it, which would decode into blocks that the file does not have."""
    kept = data.rstrip(b"\0")
    return kept + b"\0" if kept.endswith(b"\xff") else kept
