"""Tars: complete, unusual, malicious and truncated ones, plain and compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile

import pyarrow as pa
import pytest

from pipeline.batch import Status
from pipeline.input import tars
from pipeline.input.members import ContainerError, MemberError
from pipeline.input.tars import StreamedTar, Unpacked, is_compressed, is_tar, tar_members, unpacks_to_a_tar
from pipeline.input.windows import Windowed
from tests.support.archives import link, tar

PACK = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def listed(content: bytes):
    return tar_members(io.BytesIO(content), len(content))


def unpacked(content: bytes):
    """The members of a compressed tar."""
    return tar_members(Unpacked(io.BytesIO(content)), None)


def found(content: bytes) -> dict[str, bytes | None]:
    """The content of each member by its offset and size."""
    return {name: None if offset is None else content[offset : offset + size] for name, offset, size in listed(content)}


LONG = "long/" * 60 + "é.jpg"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_the_bytes_at_offset_and_size(format):
    names = ["a.jpg", "sub/b c.png", "../../etc/passwd.jpg", "/root.jpg"] + [LONG] * (format != tarfile.USTAR_FORMAT)
    content = tar(*((name, name.encode() * 30) for name in names), ("empty.jpg", b""), format=format)
    assert found(content) == {**{name: name.encode() * 30 for name in names}, "empty.jpg": b""}


def test_folders_are_omitted_and_links_have_no_offset():
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    content = tar(folder, ("sub/a.jpg", b"1"), link("hard.jpg", tarfile.LNKTYPE), link("soft.jpg", tarfile.SYMTYPE),
                  link("pipe.jpg", tarfile.FIFOTYPE))
    assert found(content) == {"sub/a.jpg": b"1", "hard.jpg": None, "soft.jpg": None, "pipe.jpg": None}


def test_a_name_that_is_not_utf_8():
    content = tar(("caf\udce9.jpg", b"1"), format=tarfile.GNU_FORMAT)
    assert found(content) == {"caf\\xe9.jpg": b"1"}


def test_an_empty_tar_and_one_without_its_end():
    assert found(tar()) == {}
    assert found(tar(("a.jpg", b"1" * 512))[:1024]) == {"a.jpg": b"1" * 512}      # its writer was never closed


WHOLE = tar(*((f"{i}.jpg", bytes([i]) * 600) for i in range(3)), format=tarfile.USTAR_FORMAT)   # 1,536 bytes each


@pytest.mark.parametrize(
    ("damage", "before"),      # before: how many members come before the damage
    [
        (lambda b: b"not a tar at all" * 100, 0),
        (lambda b: b"", 0),
        (lambda b: b[:300], 0),
        (lambda b: b[:1000], 0),                                        # within the first member
        (lambda b: b[: 1536 + 600], 1),
        (lambda b: b[: 1536 + 100], 1),                                 # within the second header
        (lambda b: b[:1536] + b"x" * 512 + b[2048:], 1),                # a header that makes no sense
        (lambda b: b[: 1536 + 148] + b"0000000\0" + b[1536 + 156 :], 1),   # a wrong checksum
    ],
)
def test_a_damaged_tar_gives_the_members_before_the_damage_and_raises(damage, before):
    members = listed(damage(WHOLE))
    assert [next(members).name for _ in range(before)] == [f"{i}.jpg" for i in range(before)]
    with pytest.raises(ContainerError):
        list(members)


def test_a_truncated_tar_loses_no_member_without_an_error():
    for end in range(0, len(WHOLE), 64):
        try:
            names = [name for name, *_ in listed(WHOLE[:end])]
        except ContainerError:
            continue
        assert len(names) == min(3, end // 1536) and (end % 1536 == 0 or end > 3 * 1536), end


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with this size field and a correct checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" b"0000000\0" b"0000000\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(value: int) -> bytes:
    return (b"\xff" if value < 0 else b"\x80") + struct.pack(">q", value).rjust(11, b"\xff" if value < 0 else b"\0")


@pytest.mark.parametrize("kind", list("0xLgSK"))   # file, pax, long name, global, sparse, long link
@pytest.mark.parametrize("size", [b"77777777777\0", base256(2**62), base256(-512), base256(-(2**40)), base256(1 << 30)],
                         ids=["8 GB", "4 EB", "-512", "-1 TB", "1 GB"])  # fmt: skip
def test_absurd_sizes_are_harmless(kind, size):
    content = tar(("a.jpg", b"1"))[:1024] + header(b"bomb.jpg", size, kind.encode()) + b"\0" * 4096
    members = listed(content)
    assert next(members).name == "a.jpg"
    with pytest.raises(ContainerError):
        list(members)


def test_endless_headers_are_harmless():
    with pytest.raises(ContainerError):
        list(listed(header(b"x", b"0", b"x") * 5000))


def test_an_oversized_header_is_not_read(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header(b"x", b"%011o" % (1 << 33), b"x"))
        file.truncate((1 << 33) + 2048)                # a sparse file of 8 GB
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(ContainerError, match="a header of"):
        list(tar_members(file, (1 << 33) + 2048))


# --- compressed

MANY = [(f"{i}.jpg", bytes([i]) * (700 + i)) for i in range(40)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", False), (b"x" * 600, False), (bytes(600), False), (tar(("a", b"1"))[:511], False), (tar(("a", b"1")), True)],
)
def test_a_tar_is_told_by_its_first_header(content, expected):
    assert is_tar(content) is expected


@pytest.mark.parametrize("kind", PACK)
def test_the_members_of_a_compressed_tar(kind):
    content = PACK[kind](tar(*MANY, link("l.jpg", tarfile.SYMTYPE)))
    assert is_compressed(content[:8]) and unpacks_to_a_tar(io.BytesIO(content))
    plain = tar(*MANY)
    members = list(unpacked(content))
    assert members[-1] == ("l.jpg", None, 0)
    assert [(name, plain[offset : offset + size]) for name, offset, size in members[:-1]] == MANY


@pytest.mark.parametrize("kind", PACK)
def test_several_streams_in_one_file(kind):
    """As pigz, pbzip2, pixz and pzstd write them."""
    content = tar(*MANY)
    pieces = [PACK[kind](content[at : at + 5000]) for at in range(0, len(content), 5000)]
    if kind == "zst":
        pieces.insert(0, b"\x50\x2a\x4d\x18\4\0\0\0skip")
    joined = b"".join(pieces)
    assert is_compressed(joined[:8])
    assert [name for name, *_ in unpacked(joined)] == [name for name, _ in MANY]


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("content", [b"", b"no tar", b"no tar" * 200, bytes(300)])
def test_a_compressed_file_that_is_no_tar(kind, content):
    packed = PACK[kind](content)
    assert not unpacks_to_a_tar(io.BytesIO(packed))
    with pytest.raises(ContainerError):
        list(unpacked(packed))


@pytest.mark.parametrize("kind", PACK)
def test_a_truncated_compressed_tar_loses_no_member_without_an_error(kind):
    whole = PACK[kind](tar(*((f"{i}.jpg", bytes(range(256)) * 9) for i in range(3))))
    for end in range(0, len(whole) - 1, 7):
        names = []
        try:
            names += [name for name, *_ in unpacked(whole[:end])]
        except ContainerError:
            continue
        assert len(names) == 3, end


class Counting(io.BytesIO):
    """A file that counts the bytes that are read."""

    bytes_read = 0

    def read(self, n_bytes=-1):
        content = super().read(n_bytes)
        self.bytes_read += len(content)
        return content


@pytest.mark.parametrize("kind", ["plain", *PACK])
def test_members_in_order_take_one_pass(kind):
    content = tar(*MANY)
    file = Counting(PACK[kind](content) if kind in PACK else content)
    reader = StreamedTar(Windowed(file, 1 << 10, 1 << 16), max_bytes=1000)
    for member, (_, expected) in zip(listed(content), MANY, strict=True):
        assert reader.read(member.offset) == expected
    assert file.bytes_read <= len(file.getvalue()) + 8
    assert reader.read(512) == MANY[0][1]                    # an earlier one: from the start again


class Failing(io.BytesIO):
    """A file whose reads fail so many times, after the first `sound`."""

    def __init__(self, content, sound, fails):
        super().__init__(content)
        self.sound, self.fails, self.asked = sound, fails, 0

    def read(self, n_bytes=-1):
        self.asked += 1
        if self.sound < self.asked <= self.sound + self.fails:
            raise OSError("the store does not answer")
        return super().read(n_bytes)


@pytest.mark.parametrize("kind", ["plain", *PACK])
def test_a_reader_goes_on_after_an_error(kind):
    chance = random.Random(0)
    members = [(f"{i}.jpg", chance.randbytes(5000)) for i in range(30)]
    content = tar(*members)
    file = Failing(PACK[kind](content) if kind in PACK else content, sound=20, fails=5)
    reader, results = StreamedTar(Windowed(file, 1 << 10, 1 << 12), 10_000), []
    for member in listed(content):
        try:
            results.append((member.name, reader.read(member.offset)))
        except OSError as error:
            results.append(str(error))
    assert results.count("the store does not answer") == 5 and len(set(members) & set(results)) == 25


@pytest.mark.parametrize("kind", PACK)
def test_what_lies_behind_a_damage_is_given_up_after_some_tries(kind):
    chance = random.Random(0)
    members = [(f"{i}.jpg", chance.randbytes(5000)) for i in range(60)]
    content = bytearray(PACK[kind](tar(*members)))
    del content[len(content) // 2 :]
    file, results = Counting(content), []
    reader = StreamedTar(Windowed(file, 1 << 10, 1 << 16), 10_000)
    for member, (_, expected) in zip(listed(tar(*members)), members, strict=True):
        try:
            assert reader.read(member.offset) == expected
        except (ContainerError, MemberError) as error:
            results.append(type(error))
    assert results == [ContainerError] * 3 + [MemberError] * (len(results) - 3) and len(results) > 20
    assert file.bytes_read < 5 * len(content)


def test_a_member_that_is_too_large_or_not_there():
    content = gzip.compress(tar(("big.jpg", b"1" * 2000), ("a.jpg", b"2")))
    reader = StreamedTar(Windowed(io.BytesIO(content), 1 << 10, 1 << 16), max_bytes=1000)
    with pytest.raises(MemberError, match="over the limit of 1000 bytes") as refused:
        reader.read(512)
    assert refused.value.status is Status.TOO_LARGE
    assert reader.read(512 + 2048 + 512) == b"2"
    with pytest.raises(MemberError, match="no such member any more"):
        reader.read(99)


@pytest.mark.parametrize("kind", PACK)
def test_a_decompression_bomb_ends_early(kind, monkeypatch):
    monkeypatch.setattr(tars, "BOMB_FROM_BYTES", 1 << 20)
    zeros = tar(("a.jpg", b"1"))[:1024] + header(b"zeros.jpg", b"00400000000\0") + bytes(1 << 26)
    members = unpacked(PACK[kind](zeros))
    assert next(members).name == "a.jpg"
    with pytest.raises(ContainerError, match="decompression bomb"):
        list(members)


def test_an_xz_file_that_wants_too_much_memory(monkeypatch):
    monkeypatch.setattr(tars, "MAX_XZ_BYTES", 1 << 20)
    with pytest.raises(ContainerError, match=r"[Mm]emory"):
        list(unpacked(lzma.compress(tar(*MANY), preset=6)))
