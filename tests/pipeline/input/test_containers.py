"""Tars and Parquet files of images: complete, unusual, malicious and truncated ones."""

from __future__ import annotations

import io
import struct
import tarfile
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.batch import TodoRow
from pipeline.input.containers import (
    NOT_A_FILE_MEMBER,
    OVERWRITTEN,
    ContainerError,
    ParquetColumns,
    ParquetImages,
    is_container,
    list_members,
    refuse_compressed,
    tar_members,
)
from pipeline.input.fetch import Fetch
from pipeline.input.names import HIDDEN, OTHER_EXTENSION, InputError
from pipeline.input.rules import Rules, Selection
from pipeline.storage import files
from pipeline.storage.files import open_file
from pipeline.storage.uris import FROM_ENVIRONMENT

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
images = Selection(Rules(), "").skips
everything = Selection(Rules(all_files=True), "").skips


def tar(*members, format=tarfile.PAX_FORMAT) -> bytes:
    """A tar of members, each (name, content) or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.jpg"
    return info


def found(content: bytes) -> dict[str, bytes | None]:
    """The content of each member by its offset and size."""
    return {name: None if offset is None else content[offset : offset + size]
            for name, offset, size in tar_members(io.BytesIO(content))}


def row(uri, **more):
    return {"uri": str(uri), "container": None, "offset": None, "size": 9, "etag": "e", "mtime": NOON, **more}


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [("", None, False), ("a.jpg", None, False), ("https://h/a.tar?x=1", None, True),
     ("s3://b/a.tar?x=1", None, False), ("/s/a.TAR", None, True), ("s3://b/a.parquet", None, False),
     ("a.parquet", ParquetColumns("image"), True), ("a.tar", ParquetColumns("image"), True), ("tar", None, False)],
)
def test_is_container(name, columns, expected):
    assert is_container(name, columns) is expected


@pytest.mark.parametrize("name", ["a.tar.gz", "s3://b/A.TGZ", "x.tar.zst"])
def test_refuse_compressed(name):
    refuse_compressed("a.tar")
    with pytest.raises(InputError, match=r"unpack it to a plain \.tar"):
        refuse_compressed(name)


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
    members = tar_members(io.BytesIO(damage(WHOLE)))
    assert [next(members)[0] for _ in range(before)] == [f"{i}.jpg" for i in range(before)]
    with pytest.raises(ContainerError):
        list(members)


def test_a_truncated_tar_loses_no_member_without_an_error():
    for end in range(0, len(WHOLE), 64):
        try:
            names = [name for name, *_ in tar_members(io.BytesIO(WHOLE[:end]))]
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
    members = tar_members(io.BytesIO(content))
    assert next(members)[0] == "a.jpg"
    with pytest.raises(ContainerError):
        list(members)


def test_endless_headers_are_harmless():
    with pytest.raises(ContainerError):
        list(tar_members(io.BytesIO(header(b"x", b"0", b"x") * 5000)))


def test_an_oversized_header_is_not_read(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header(b"x", b"%011o" % (1 << 33), b"x"))
        file.truncate((1 << 33) + 2048)                # a sparse file of 8 GB
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(ContainerError, match="a header of"):
        list(tar_members(file))


def test_members_become_rows(tmp_path):
    content = tar(("a.jpg", b"123"), ("a.json", b"{}"), (".hidden.jpg", b"1"), ("noext", b"12"),
                  link("l.jpg", tarfile.SYMTYPE), ("a.jpg", b"later"))
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    members = list_members(row(path), FROM_ENVIRONMENT, None, skips=images)
    assert members.damage is None
    assert members.skipped == {OTHER_EXTENSION: 1, HIDDEN: 1, NOT_A_FILE_MEMBER: 1, OVERWRITTEN: 1}
    rows = members.rows.to_pylist()
    assert [each["uri"] for each in rows] == [f"{path}#noext", f"{path}#a.jpg"]
    assert [content[each["offset"] :][: each["size"]] for each in rows] == [b"12", b"later"]
    assert {(each["container"], each["etag"], each["mtime"]) for each in rows} == {(str(path), "e", NOON)}
    members = list_members(row(path), FROM_ENVIRONMENT, None, skips=everything)
    assert len(members.rows) == 4 and members.skipped == {NOT_A_FILE_MEMBER: 1, OVERWRITTEN: 1}


@pytest.mark.parametrize("content", [b"", b"junk" * 200, WHOLE[:2000], None])
def test_a_damaged_container_gives_a_row_for_the_rest(tmp_path, content):
    path = tmp_path / "s.tar"
    if content is not None:
        path.write_bytes(content)
    members = list_members(row(path), FROM_ENVIRONMENT, None, skips=images)
    assert members.damage is not None and str(path) in members.damage
    assert members.rows.to_pylist()[-1] == row(path, container=str(path), size=None)


# --- Parquet


def write_images(path, values, type=pa.binary(), row_group_size=3, **columns):  # noqa: B008
    table = pa.table({"image": pa.array(values, type), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


NAMED = ["x", None, "x", "é/3", "1"]


@pytest.mark.parametrize(
    ("columns", "uris"),
    [
        (ParquetColumns("image"), ["0", "1", "2", "3", "4"]),
        (ParquetColumns("image", "name"), ["x", "1", "x~2", "é/3", "1~4"]),       # every row is an image
        (ParquetColumns("image", "n"), ["10", "11", "12", "13", "14"]),
    ],
)
def test_rows_of_a_parquet_file(tmp_path, columns, uris):
    path = write_images(tmp_path / "a.parquet", [b"%d" % i for i in range(5)], name=NAMED, n=range(10, 15))
    members = list_members(row(path), FROM_ENVIRONMENT, columns, skips=images)
    assert [each["uri"] for each in members.rows.to_pylist()] == [f"{path}#{name}" for name in uris]
    assert members.rows["offset"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(members.rows["size"].to_pylist()) == {None}
    assert not members.skipped


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("type", [pa.binary(), pa.large_binary(), STRUCT, pa.struct([("bytes", pa.large_binary())])],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("rows", [range(20), [0, 1, 7, 8, 19], [19, 0], [5, 5], [6, 2]])
def test_images_are_read_from_any_row(tmp_path, type, rows):
    values = [None if i == 7 else b"%d" % i for i in range(20)]
    nested = [{"bytes": value} if value else None for value in values] if pa.types.is_struct(type) else values
    path = write_images(tmp_path / "a.parquet", nested, type, row_group_size=6)
    images = ParquetImages("image", FROM_ENVIRONMENT)
    assert [images.read(path, i) for i in rows] == [b"" if i == 7 else b"%d" % i for i in rows]
    images.close()


def test_a_row_group_is_read_once_for_rows_in_order(tmp_path, monkeypatch):
    path = write_images(tmp_path / "a.parquet", [b"%d" % i for i in range(20)], row_group_size=6)
    started = []
    start = ParquetImages._start_row_group

    def counting(self, number):
        started.append(number)
        start(self, number)

    monkeypatch.setattr(ParquetImages, "_start_row_group", counting)
    images = ParquetImages("image", FROM_ENVIRONMENT)
    assert [images.read(path, i) for i in (1, 2, 5, 6, 19)] == [b"1", b"2", b"5", b"6", b"19"]
    assert started == [1, 6, 19]


def test_several_files_with_broken_ones_among_them(tmp_path):
    one = write_images(tmp_path / "1.parquet", [b"1"])
    two = write_images(tmp_path / "2.parquet", [b"2"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" * 10)
    images = ParquetImages("image", FROM_ENVIRONMENT)
    assert [images.read(path, 0) for path in (one, two, one)] == [b"1", b"2", b"1"]
    for path, number, error in [(str(tmp_path / "broken.parquet"), 0, pa.ArrowInvalid), (one, 3, ContainerError),
                                (str(tmp_path / "none"), 0, FileNotFoundError)]:
        with pytest.raises(error):
            images.read(path, number)
        assert images.read(two, 0) == b"2"                   # still usable after an error


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ParquetColumns("picture"), "no column picture, only image, name"),
        (ParquetColumns("name"), "column name of .* holds string, not the bytes of images"),
        (ParquetColumns("image", "id"), "no column id"),
        (ParquetColumns("image.bytes"), "no column image.bytes"),
    ],
)
def test_a_wrong_column_is_refused_with_the_option_to_check(tmp_path, columns, message):
    path = write_images(tmp_path / "a.parquet", [b"1"], name=["x"])
    with pytest.raises(InputError, match=message) as error:
        list_members(row(path), FROM_ENVIRONMENT, columns, skips=images)
    assert "--image-column" in str(error.value)


# --- in a bucket


def test_a_tar_in_a_bucket_is_indexed_by_ranged_reads(bucket, monkeypatch):
    big = b"x" * 3_000_000
    bucket.put("s/a.tar", tar(("a.jpg", b"123"), ("big.jpg", big), ("c.jpg", b"45")))
    read = []
    get_range = files.obstore.get_range

    def counting(store, key, *, start, end):
        read.append(end - start)
        return get_range(store, key, start=start, end=end)

    monkeypatch.setattr(files.obstore, "get_range", counting)
    uri = f"{bucket.uri}/s/a.tar"
    members = list_members(row(uri), FROM_ENVIRONMENT, None, skips=images)
    assert [each["uri"] for each in members.rows.to_pylist()] == [f"{uri}#{n}" for n in ("a.jpg", "big.jpg", "c.jpg")]
    assert sum(read) < len(big)


def test_a_parquet_file_in_a_bucket(bucket, tmp_path):
    bucket.put("a.parquet", open(write_images(tmp_path / "a.parquet", [b"0", b"1"]), "rb").read())   # noqa: PTH123, SIM115
    uri = f"{bucket.uri}/a.parquet"
    assert ParquetImages("image", FROM_ENVIRONMENT).read(uri, 1) == b"1"
    members = list_members(row(uri), FROM_ENVIRONMENT, ParquetColumns("image"), skips=images)
    assert members.rows["uri"].to_pylist() == [f"{uri}#0", f"{uri}#1"]


@pytest.mark.parametrize("query", ["", "?signature=1%2F2"])
def test_a_tar_on_a_web_server_that_allows_only_get(web, query):
    content = tar(("a.jpg", b"123"), ("b.jpg", b"4567"))
    web.files[f"/s/a.tar{query}"] = content
    with open_file(f"{web.url}/s/a.tar{query}", FROM_ENVIRONMENT) as file:
        places = {name: (offset, size) for name, offset, size in tar_members(file)}
    [answer] = Fetch()([TodoRow("u", container=f"{web.url}/s/a.tar{query}", offset=places["b.jpg"][0], size=4)])
    assert answer.content == b"4567"
