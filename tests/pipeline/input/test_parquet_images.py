"""Parquet files of images as different tools write them."""

from __future__ import annotations

import io
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.batch import Status
from pipeline.input.members import ContainerError, Elsewhere, MemberError
from pipeline.input.names import InputError
from pipeline.input.parquet_images import ParquetColumns, ParquetImages, image_columns, name_image_column, row_names
from pipeline.storage.uris import FROM_ENVIRONMENT
from tests.support.archives import write_images

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LARGE = pa.struct([("path", pa.large_string()), ("more", pa.int8()), ("bytes", pa.large_binary())])


def file_of(table: pa.Table, rows: int = 3) -> io.BytesIO:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    return out


def reader(table: pa.Table, column: str = "image", max_bytes: int = 100) -> ParquetImages:
    return ParquetImages(file_of(table), "x.parquet", column, max_bytes)


def names(values, column: str = "name", uri: str | None = "name", **columns) -> tuple[list[str], int]:
    table = pa.table({"image": pa.array([b"1"] * len(values), pa.binary()), column: values, **columns})
    return row_names(file_of(table), "x.parquet", ParquetColumns("image", uri))


# --- names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([], pa.string()), []),
        (["a"], ["a"]),
        (["a", None, "a", "", "", "1", "a"], ["a", "1", "a~2", "", "~4", "1~5", "a~6"]),
        (["a", "a~2", "a", "a~2"], ["a", "a~2", "a~2~2", "a~2~3"]),
        (pa.array(["a", None, "a"], pa.string_view()), ["a", "1", "a~2"]),
        (pa.array(["a", None, "a"], pa.large_string()), ["a", "1", "a~2"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", "1", "a~2"]),
        (pa.array([b"a", None, b"\xff"], pa.binary()), ["a", "1", "\\xff"]),
        ([0, 0, 1, 1], ["0", "0~1", "1", "1~3"]),
        ([1.5, float("nan"), float("nan")], ["1.5", "nan", "nan~2"]),
        ([date(2026, 1, 2)], ["2026-01-02"]),
        (pa.nulls(2), ["0", "1"]),
    ],
)
def test_every_row_has_a_name_of_its_own(values, expected):
    found, renamed = names(values)
    assert found == expected
    given = [value for value in pa.array(values).to_pylist() if value is not None]
    assert renamed >= len(given) - len(set(map(str, given)))


def test_names_do_not_depend_on_the_row_groups():
    values = ["b", "a", "b", "a", "b"] * 10
    table = pa.table({"image": [b"1"] * 50, "name": values})
    found = [row_names(file_of(table, rows), "x", ParquetColumns("image", "name")) for rows in (1, 7, 50)]
    assert found[0] == found[1] == found[2] and len(set(found[0][0])) == 50 and found[0][1] == 48


@pytest.mark.parametrize("value", [b"\xff\xd8" + bytes(5000)])
def test_images_are_no_names(value):
    with pytest.raises(InputError, match="holds 5,002 bytes, not a name: check --uri-column"):
        names(pa.array([value]))


@pytest.mark.parametrize("values", [[["a"]], [{"a": 1}]])
def test_nested_values_are_no_names(values):
    with pytest.raises(InputError, match="not names: check --uri-column"):
        names(values)


def test_dots_in_the_names_of_columns():
    inside = pa.array([{"b": "in a.b", "c.d": "in a.c.d"}])
    assert names(inside, "a", "a.b")[0] == ["in a.b"]
    assert names(inside, "a", "a.c.d")[0] == ["in a.c.d"]
    assert names(inside, "a", "a.b", **{"a.b": ["the column a.b"]})[0] == ["the column a.b"]     # the exact name wins
    assert names(["x"], "image.name", "image.name")[0] == ["x"]
    assert names(pa.array([None, {"b": "1"}]), "a", "a.b")[0] == ["0", "1"]


# --- images


@pytest.mark.parametrize("kind", [
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), STRUCT, LARGE,
    pa.list_(pa.binary()), pa.large_list(pa.large_binary()), pa.list_(pa.binary_view()), pa.list_(pa.binary(), 1),
    pa.list_(STRUCT), pa.list_(LARGE),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("rows", [range(20), [0, 1, 7, 8, 19], [19, 0], [5, 5], [6, 2]])
def test_images_are_read_from_any_row(tmp_path, kind, rows):
    def value(i):
        plain = None if i == 7 else b"%d" % i
        inner = kind.value_type if hasattr(kind, "value_field") else kind
        wrapped = {"bytes": plain} if plain and pa.types.is_struct(inner) else plain
        return wrapped if inner is kind or wrapped is None else [wrapped]

    values = [value(i) for i in range(20)]
    if pa.types.is_dictionary(kind):
        values = pa.array(values, kind.value_type).dictionary_encode()
    path = write_images(tmp_path / "a.parquet", values, kind, rows=6)
    images = ParquetImages(open(path, "rb"), path, "image", 100)   # noqa: PTH123, SIM115
    assert [images.read(i) for i in rows] == [b"" if i == 7 else b"%d" % i for i in rows]
    images.close()


def test_a_column_with_dots_and_others_beside_it():
    table = pa.table({
        "image": pa.array([b"1"], pa.binary()), "image.name": ["x"], "a.b": pa.array([b"2"], pa.binary()),
        "a": pa.array([{"b": b"3", "c": {"bytes": b"4", "path": None}}]),
    })
    found = {name: reader(table, name).read(0) for name in ("image", "a.b", "a.c", "a.c.bytes")}
    assert found == {"image": b"1", "a.b": b"2", "a.c": b"4", "a.c.bytes": b"4"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, b""), ({"bytes": None, "path": None}, b""), ({"bytes": b"1", "path": "/a.jpg"}, b"1"),
     ({"bytes": None, "path": "/a.jpg"}, Elsewhere("/a.jpg")), ({"bytes": b"", "path": "a.jpg"}, b"")],
)
def test_a_row_without_bytes_names_the_path(value, expected):
    assert reader(pa.table({"image": pa.array([value], STRUCT)})).read(0) == expected


def test_a_column_of_nulls():
    """As pyarrow writes it if no row of the file has a value."""
    table = pa.table({"image": [None, None], "deep": [{"bytes": None, "path": "/a.jpg"}, None], "list": [[None], []]})
    assert [reader(table, name).read(0) for name in ("image", "deep", "list")] == [b"", Elsewhere("/a.jpg"), b""]
    assert image_columns(table.schema) == ["deep", "list"]


def test_a_name_that_is_not_utf_8():
    with pytest.raises(pa.ArrowInvalid):
        names(pa.array([b"\xff"]).view(pa.string()))


def test_a_row_that_cannot_be_read_does_not_stop_the_next():
    images = reader(pa.table({"image": [[b"1", b"2"], [b"3" * 200], [b"4"], []]}))
    for row, status in [(0, Status.UNSUPPORTED), (1, Status.TOO_LARGE)]:
        with pytest.raises(MemberError, match=r"several images|over the limit of 100 bytes") as error:
            images.read(row)
        assert error.value.status is status
    assert (images.read(2), images.read(3)) == (b"4", b"")
    with pytest.raises(ContainerError, match="the file ends before row 4"):
        images.read(4)


class Counting(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    bytes_read = 0

    def read(self, n_bytes=-1):
        content = super().read(n_bytes)
        self.bytes_read += len(content)
        return content


def test_a_row_group_is_read_once_for_rows_in_order():
    table = pa.table({"image": pa.array([bytes([i]) * 40_000 for i in range(200)], pa.binary())})
    file = Counting(file_of(table, rows=100).getvalue())
    images = ParquetImages(file, "x.parquet", "image", 1 << 20)
    opened = file.bytes_read
    for i in range(0, 200, 2):                     # every second row, as the pools of one actor get them
        assert images.read(i) == bytes([i]) * 40_000
    assert file.bytes_read - opened <= 1.05 * len(file.getvalue())


def test_a_damaged_row_group_is_given_up_after_some_tries_and_the_next_is_read():
    table = pa.table({"image": pa.array([bytes([i]) * 40_000 for i in range(60)], pa.binary())})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=30, compression="none", use_dictionary=False, data_page_size=100_000)
    content = bytearray(out.getvalue())
    damaged = slice(content.index(bytes([14]) * 40_000), content.index(bytes([20]) * 40_000))
    content[damaged] = b"\xff" * (damaged.stop - damaged.start)     # with the headers of the pages there
    file = Counting(content)
    images, results = ParquetImages(file, "x.parquet", "image", 1 << 20), []
    for i in range(60):
        try:
            results.append(images.read(i))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    good = [i for i, result in enumerate(results) if result == bytes([i]) * 40_000]
    assert {*range(30, 60)} < {*good} and 5 < len(good) < 55
    assert results[29].startswith("MemberError: damaged in its container: ")
    assert file.bytes_read < 5 * len(content)
    images.close()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("picture", r"has no column picture, only name, image, deep: .*could be in image, deep\.image\)"),
        ("name", r"column name of x.parquet holds string, not the bytes of images: .*could be in image, deep\.image\)"),
        ("deep", "column deep of x.parquet holds struct"),
        ("image.bytes", "has no column image.bytes"),
    ],
)
def test_a_wrong_column_is_refused_with_those_that_could_be_meant(columns, message):
    table = pa.table({"name": ["x"], "image": pa.array([b"1"]), "deep": [{"image": b"2", "label": 1}]})
    with pytest.raises(InputError, match=message) as error:
        reader(table, columns)
    assert "--image-column" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "is_one"),
    [(pa.string(), False), (pa.int8(), False), (pa.list_(pa.int8()), False), (pa.list_(pa.list_(pa.binary())), False),
     (pa.binary(16), False), (pa.struct([("path", pa.string())]), False), (pa.binary(), True), (STRUCT, True),
     (pa.list_(LARGE), True), (pa.dictionary(pa.int8(), pa.binary()), True)],
    ids=str,
)  # fmt: skip
def test_columns_that_could_hold_images(kind, is_one):
    assert image_columns(pa.schema([("a", pa.int64()), ("b", kind)])) == ["b"] * is_one


@pytest.mark.parametrize(
    ("table", "end"),
    [({"image": pa.array([b"1"]), "thumb": pa.array([b"1"])}, "its images; here it could be image or thumb"),
     ({"url": ["x"]}, "the column that holds its images"), (None, "the column that holds its images")],
)  # fmt: skip
def test_a_file_without_an_image_column_is_told_the_option(tmp_path, table, end):
    path = tmp_path / "a.parquet"
    if table:
        pq.write_table(pa.table(table), path)
    message = name_image_column(str(path), FROM_ENVIRONMENT)
    assert message.startswith(f"{path} is a Parquet file: --image-column names") and message.endswith(end)
