"""Zips: their members by the directory at the end."""

from __future__ import annotations

import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import BinaryIO, cast

from pipeline.batch import Status
from pipeline.errors import first_line
from pipeline.input.members import ContainerError, Member, MemberError, member_name, too_large
from pipeline.input.windows import Windowed

MAX_DIRECTORY_BYTES = 64 << 20     # about 800,000 photos; a directory of 38 MB takes 380 MB of memory
LARGE_DIRECTORY_BYTES = 4 << 20    # of these, threads list one at a time
BOMB_RATIO = 200
BOMB_FROM_BYTES = 64 << 20
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1

_ONE_LARGE = threading.Lock()
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}

# What zipfile raises for damaged files. It checks little itself: a wrong number in a header becomes the error of
# whatever uses it: struct, zlib, seek (ValueError, OverflowError), or a feature that it lacks (NotImplementedError,
# RuntimeError).
_DAMAGED = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError, struct.error,
    zlib.error,
)


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip."""
    return head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08"))


def zip_members(file: Windowed) -> Iterator[Member]:
    """Every member that is not a folder, in the order of the directory. A member's offset is that of its local header.

    Raises ContainerError for a file that is damaged or no zip, and if members share bytes, as in a bomb.
    """
    with ExitStack() as held:
        for info in _open(file, lambda: held.enter_context(_ONE_LARGE)).infolist():
            if not info.is_dir():
                plain = not stat.S_ISLNK(info.external_attr >> 16)
                yield Member(member_name(info.filename), info.header_offset if plain else None, info.file_size)


class ZipMembers:
    """Reads members of a zip. Those that lie side by side are read together."""

    def __init__(self, file: Windowed, max_bytes: int) -> None:
        self._file = file
        self._archive = _open(file)
        self._infos = {info.header_offset: info for info in self._archive.infolist()}
        self._max_bytes = max_bytes

    def read(self, offset: int) -> bytes:
        """The member whose local header is at that offset. Raises MemberError."""
        info = self._infos.get(offset)
        if info is None:
            raise MemberError("the archive has no such member any more")
        _refuse(info, self._max_bytes)
        try:
            with self._archive.open(info) as member:
                content = member.read(info.file_size)
                member.read(1)          # the checksum is compared at the end
        except _DAMAGED as error:
            raise MemberError("damaged in its zip", Status.UNREADABLE) from error
        if len(content) < info.file_size:
            raise MemberError("damaged in its zip", Status.UNREADABLE)
        return content

    def close(self) -> None:
        self._file.close()


def _open(file: Windowed, wait_for_turn: Callable[[], object] | None = None) -> zipfile.ZipFile:
    try:
        bounded = _Bounded(file, wait_for_turn)
        archive = zipfile.ZipFile(cast(BinaryIO, bounded))
    except _DAMAGED as error:
        raise ContainerError(f"not a zip, or a damaged one ({first_line(error)})") from error
    bounded.limit_bytes = None
    _refuse_overlaps(archive.infolist())
    return archive


class _Bounded:
    """A file that refuses reads above the limit: zipfile reads a directory of any size whole.

    wait_for_turn: called before a large directory is read.
    """

    def __init__(self, file: Windowed, wait_for_turn: Callable[[], object] | None) -> None:
        self._file = file
        self._wait_for_turn = wait_for_turn
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.limit_bytes: int | None = MAX_DIRECTORY_BYTES

    def read(self, n_bytes: int = -1) -> bytes:
        if self.limit_bytes is not None and n_bytes > self.limit_bytes:
            raise ContainerError(f"its directory has {n_bytes:,} bytes; unpack it")
        if self._wait_for_turn and self.limit_bytes is not None and n_bytes > LARGE_DIRECTORY_BYTES:
            self._wait_for_turn()
            self._wait_for_turn = None
        return self._file.read(n_bytes)


def _refuse_overlaps(infos: list[zipfile.ZipInfo]) -> None:
    for before, after in pairwise(sorted(infos, key=lambda info: info.header_offset)):
        if before.header_offset + _LOCAL_HEADER_BYTES + before.compress_size > after.header_offset:
            raise ContainerError(f"not a zip, or a damaged one (members overlap at byte {after.header_offset:,})")


def _refuse(info: zipfile.ZipInfo, max_bytes: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise MemberError("encrypted in its zip: unpack that with its password", Status.UNSUPPORTED)
    if info.compress_type not in _METHODS:
        raise MemberError(
            f"packed by method {info.compress_type} in its zip, which is not read: unpack that", Status.UNSUPPORTED
        )
    if info.file_size > max_bytes:
        raise too_large(max_bytes)
    if info.file_size > BOMB_FROM_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        raise MemberError(f"a decompression bomb: more than {BOMB_RATIO} times its size in the zip", Status.TOO_LARGE)
