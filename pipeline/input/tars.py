"""Tars, plain and compressed: where the members are, and their bytes in one pass over a compressed one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from pipeline.errors import first_line
from pipeline.input.members import ContainerError, Damage, Member, MemberError, member_name, too_large
from pipeline.input.windows import Windowed

MAX_HEADER_BYTES = 1 << 20     # of a tar: a name needs a few hundred; without a limit a header may claim the whole file

# Bounds of decompression. Zeros compress a thousandfold with gzip and far more with zstd; pictures hardly at all.
BOMB_RATIO = 200
BOMB_FROM_BYTES = 4 << 30
MAX_XZ_BYTES = 256 << 20       # of the dictionary: xz -9 needs 65 MB
_SKIPPED_BYTES = 1 << 20       # at a time
_READ_BYTES = 1 << 20
_RESTART = 1 << 63

MAGIC_OF_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18")

# What the decompressors raise for damaged content.
_DAMAGED = (
    tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
)


class Readable(Protocol):
    """A file that is read forward, with its place."""

    def read(self, n_bytes: int, /) -> bytes:
        """The next n_bytes; fewer only at the end."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to that place."""

    def tell(self) -> int:
        """The place of the next byte."""


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar: its first header has the right checksum."""
    try:
        return len(head) >= tarfile.BLOCKSIZE and bool(
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        )
    except (tarfile.TarError, ValueError):
        return False


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins so is compressed by gzip, bzip2, xz or zstd."""
    return head.startswith(MAGIC_OF_COMPRESSED[:4]) or (head[1:4] == MAGIC_OF_COMPRESSED[4] and 0x50 <= head[0] <= 0x5F)


def tar_members(file: Readable, total: int | None) -> Iterator[Member]:
    """Every member that is not a folder, in order. total: the size of the file in bytes, if it is known.

    Nothing is unpacked, so a name that points elsewhere does no harm. Yields the members before a damage, then raises
    ContainerError: for a file that is no tar, for a header that makes no sense, for a member that the file cuts off.
    """
    try:
        # tarfile reads the headers, since names come in four dialects.
        headers = _HeaderReader(file)
        with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:", errors="surrogateescape") as tar:
            place = -1
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []             # tarfile would keep them all
                end = member.offset_data + member.size
                # With a size below 0 tarfile may read the same header for ever.
                if member.size < 0 or member.offset_data <= place or (total is not None and end > total):
                    raise ContainerError(f"a member of {member.size:,} bytes at byte {member.offset_data:,}")
                place = member.offset_data
                if not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    yield Member(member_name(member.name), member.offset_data if plain else None, member.size)
            if any(headers.last):                       # tarfile ends at a header that makes no sense
                raise ContainerError(f"no header of a member at byte {tar.offset:,}")
    except _DAMAGED as error:
        raise ContainerError(f"not a tar, or a damaged one ({first_line(error)})") from error


class _HeaderReader:
    """The part of a file's interface that tarfile uses, limited to the size of headers. last: what was read last."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ContainerError(f"a header of {size:,} bytes at {self._file.tell():,}")
        self.last = self._file.read(size)
        return self.last


class Unpacked:
    """What a compressed file holds, read forward. Raises ContainerError at a damage, and for a decompression bomb."""

    def __init__(self, file: BinaryIO | Windowed) -> None:
        self._file = file
        file.seek(0)
        self._stream = _decompressor(cast(BinaryIO, file))
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go forward to a place, or to the end if that comes first."""
        assert whence == os.SEEK_SET
        if offset < self._position:
            raise ContainerError(f"a header at byte {offset:,} that comes before byte {self._position:,}")
        while offset > self._position and self.read(min(offset - self._position, _SKIPPED_BYTES)):
            pass
        return self._position

    def read(self, n_bytes: int) -> bytes:
        pieces = []
        while n_bytes > 0 and (piece := self._read_some(n_bytes)):
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    def _read_some(self, n_bytes: int) -> bytes:
        try:
            piece: bytes = self._stream.read(min(n_bytes, _READ_BYTES))
        except _DAMAGED as error:
            raise ContainerError(f"damaged at byte {self._position:,} of its content ({first_line(error)})") from error
        self._position += len(piece)
        if self._position > BOMB_FROM_BYTES and self._position > BOMB_RATIO * self._file.tell():
            raise ContainerError(f"a decompression bomb: it unpacks to more than {BOMB_RATIO} times its size")
        return piece


def _decompressor(file: BinaryIO) -> Any:
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ"):
        return _Xz(file)
    return _Zstd(file)


class _Unclosed:
    """A file for Arrow, which closes what it reads when it is done."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read
        self.closed = False

    def close(self) -> None:
        self.closed = True


class _Zstd:
    """A zstd file. Arrow raises the same OSError for damage as the file below for its faults."""

    def __init__(self, file: BinaryIO) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Unclosed(file.read), mode="r"), "zstd")

    def read(self, n_bytes: int) -> bytes:
        try:
            return bytes(self._stream.read(n_bytes))
        except OSError as error:
            if str(error).startswith(("ZSTD", "Truncated")):
                raise ValueError(str(error)) from error
            raise


class _Xz:
    """An xz file, decompressed with a limit of memory, which Python's own file class has not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._xz = lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES)
        self._left = b""

    def read(self, n_bytes: int) -> bytes:
        while True:
            if self._xz.eof:
                self._left = (self._xz.unused_data or self._file.read(_READ_BYTES)).lstrip(b"\0")   # padding
                if not self._left:
                    return b""
                self._xz = lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES)
            if self._xz.needs_input and not self._left:
                self._left = self._file.read(_READ_BYTES)
                if not self._left:
                    raise EOFError("the compressed data is cut off")
            piece, self._left = self._xz.decompress(self._left, n_bytes), b""
            if piece:
                return piece


def unpacks_to_a_tar(file: BinaryIO) -> bool:
    """Whether this compressed file holds a tar."""
    try:
        return is_tar(Unpacked(file).read(tarfile.BLOCKSIZE))
    except (ContainerError, OSError):
        return False


class StreamedTar:
    """Reads members of a tar in order: one pass over a compressed tar, as long as no earlier member is asked for."""

    def __init__(self, file: Windowed, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._damage = Damage()
        self._next = _RESTART        # no member before this place is read without a restart

    def read(self, offset: int) -> bytes:
        """The member at that offset of the unpacked tar. Raises MemberError, ContainerError."""
        self._damage.check(offset)
        try:
            return self._read(offset)
        except MemberError:
            raise
        except Exception as error:
            if isinstance(error, ContainerError):      # not for an error of the store
                self._damage.note(offset, error)
            self._next = _RESTART
            raise

    def _read(self, offset: int) -> bytes:
        if offset < self._next:
            self._restart()
        for member in self._members:
            self._next = (member.offset or 0) + 1
            if member.offset == offset:
                return self._content(member)
            if self._next > offset:
                break
        raise MemberError("the archive has no such member any more")

    def close(self) -> None:
        self._file.close()

    def _restart(self) -> None:
        self._file.seek(0)
        head = self._file.read(8)
        self._file.seek(0)
        self._stream: Readable = Unpacked(self._file) if is_compressed(head) else self._file
        self._members = tar_members(self._stream, None if is_compressed(head) else self._file.size)
        self._next = 0

    def _content(self, member: Member) -> bytes:
        if member.size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._stream.seek(member.offset or 0)
        content = self._stream.read(member.size)
        if len(content) < member.size:
            raise ContainerError(f"the container ends after {len(content)} of the {member.size} bytes of a member")
        return content

