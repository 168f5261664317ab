"""Zips: complete, unusual, encrypted, malicious and truncated ones."""

from __future__ import annotations

import io
import stat
import struct
import threading
import zipfile

import pytest

from pipeline.batch import Status
from pipeline.input import zips
from pipeline.input.members import ContainerError, MemberError
from pipeline.input.windows import Windowed
from pipeline.input.zips import ZipMembers, is_zip, zip_members
from tests.support.archives import zipped

SMALL = (("a.jpg", b"123"), ("sub/é.jpg", b"45" * 3000), ("empty.jpg", b""))


def windowed(content: bytes) -> Windowed:
    return Windowed(io.BytesIO(content), 1 << 10, 1 << 16)


def listed(content: bytes):
    return list(zip_members(windowed(content)))


def read(content: bytes, max_bytes: int = 1 << 20) -> dict[str, bytes | tuple[str, Status]]:
    """The content of each member, or why it cannot be read."""
    reader, found = ZipMembers(windowed(content), max_bytes), {}
    for name, offset, _ in listed(content):
        try:
            found[name] = None if offset is None else reader.read(offset)
        except MemberError as error:
            found[name] = (error.reason, error.status)
    reader.close()
    return found


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("members", [(), SMALL])
def test_members_are_read_back(members, method):
    content = zipped(*members, method=method)
    assert is_zip(content) and read(content) == dict(members)
    assert [size for _, _, size in listed(content)] == [len(each) for _, each in members]


def test_folders_are_omitted_and_links_are_no_files():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.mkdir("sub") if hasattr(archive, "mkdir") else archive.writestr("sub/", b"")
        link = zipfile.ZipInfo("l.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a.jpg")
        archive.writestr("a.jpg", b"1")
    assert read(out.getvalue()) == {"l.jpg": None, "a.jpg": b"1"}


def test_written_to_a_stream_and_with_a_program_in_front():
    """Sizes then come after each member; the directory at the end has them."""

    class Stream(io.RawIOBase):
        def __init__(self):
            self.content = bytearray()

        def writable(self):
            return True

        def write(self, piece):
            self.content += piece
            return len(piece)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in SMALL:
            archive.writestr(name, content)
    assert read(bytes(stream.content)) == read(b"MZ" + bytes(5000) + bytes(stream.content)) == dict(SMALL)


def changed(content: bytes, at: int, value: bytes, part: bytes = b"PK\1\2") -> bytes:
    """The zip with other bytes in its first directory entry, or in its first local header."""
    start = content.index(part) + at
    return content[:start] + value + content[start + len(value) :]


ONE = zipped(("a.jpg", b"123" * 40))


@pytest.mark.parametrize(
    ("content", "reason", "status"),
    [
        (changed(ONE, 8, b"\1\0"), "encrypted in its zip: unpack that with its password", Status.UNSUPPORTED),
        (changed(ONE, 10, b"\x09\0"), "packed by method 9 in its zip, which is not read: unpack that",
         Status.UNSUPPORTED),
        (changed(ONE, 24, struct.pack("<L", 1 << 30)), "over the limit of 1048576 bytes", Status.TOO_LARGE),
        (changed(ONE, 24, struct.pack("<L", 5000)), "damaged in its zip", Status.UNREADABLE),
        (changed(ONE, 24, struct.pack("<L", 5)), "damaged in its zip", Status.UNREADABLE),
        (changed(ONE, 16, b"\0\0\0\0"), "damaged in its zip", Status.UNREADABLE),                    # the checksum
        (changed(ONE, 36, b"\xff\xff\xff\xff", b"PK\3\4"), "damaged in its zip", Status.UNREADABLE),    # the content
        (changed(ONE, 0, b"none", b"PK\3\4"), "damaged in its zip", Status.UNREADABLE),
    ],
)  # fmt: skip
def test_a_member_that_cannot_be_read(content, reason, status):
    assert read(content) == {"a.jpg": (reason, status)}


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(zips, "BOMB_FROM_BYTES", 10_000)
    found = read(zipped(("zeros.jpg", bytes(1_000_000)), ("a.jpg", b"1")))
    assert found == {
        "zeros.jpg": ("a decompression bomb: more than 200 times its size in the zip", Status.TOO_LARGE), "a.jpg": b"1"
    }


def test_members_that_share_bytes_are_a_bomb():
    content = zipped(("a.jpg", b"1" * 50), ("b.jpg", b"1" * 50), method=zipfile.ZIP_STORED)
    second = content.rindex(b"PK\1\2")
    overlapping = content[: second + 42] + struct.pack("<L", 10) + content[second + 46 :]
    with pytest.raises(ContainerError, match="overlap"):
        listed(overlapping)


def test_a_directory_of_absurd_size_is_not_read(monkeypatch):
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 1 << 16)
    many = zipped(*((f"{'x' * 200}{i}.jpg", b"") for i in range(400)))
    with pytest.raises(ContainerError, match=r"its directory has .* bytes; unpack it"):
        listed(many)


def test_threads_read_one_large_directory_at_a_time(monkeypatch):
    monkeypatch.setattr(zips, "LARGE_DIRECTORY_BYTES", 100)
    many = zipped(*((f"{i}.jpg", b"") for i in range(50)))
    members = zip_members(windowed(many))
    next(members)
    assert zips._ONE_LARGE.locked()
    ended = []
    other = threading.Thread(target=lambda: ended.append(len(listed(many))))
    other.start()
    assert len(listed(zipped(("a.jpg", b"")))) == 1          # a small one does not wait
    assert ended == [] and len(list(members)) == 49
    other.join(10)
    assert ended == [50] and not zips._ONE_LARGE.locked()


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + bytes(100), b"PK\5\6", b"no zip" * 100])
def test_what_is_no_zip(content):
    with pytest.raises(ContainerError, match="not a zip, or a damaged one"):
        listed(content)


def test_a_truncated_zip_is_refused():
    whole = zipped(*SMALL)
    for end in range(len(whole)):
        with pytest.raises(ContainerError):
            listed(whole[:end])


def test_a_member_that_is_not_there_any_more():
    with pytest.raises(MemberError, match="no such member any more"):
        ZipMembers(windowed(ONE), 100).read(7)
