from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.input import inventory as module
from pipeline.input.inventory import Inventory, inventory_stretches, is_inventory, read_inventory
from pipeline.input.manifest_folder import merged
from pipeline.input.names import InputError
from pipeline.input.rules import Rules
from pipeline.schemas import LISTING
from pipeline.storage.uris import FROM_ENVIRONMENT

# The schemas that AWS's user guide shows, with the columns that an inventory can leave out.
CSV_SCHEMA = (
    "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass, IsMultipartUploaded"
)
PARQUET_SCHEMA = pa.schema([
    pa.field("bucket", pa.string(), nullable=False), pa.field("key", pa.string(), nullable=False),
    pa.field("version_id", pa.string()), pa.field("is_latest", pa.bool_()), pa.field("is_delete_marker", pa.bool_()),
    pa.field("size", pa.int64()), pa.field("last_modified_date", pa.timestamp("ms", tz="UTC")),
    pa.field("e_tag", pa.string()), pa.field("storage_class", pa.string()),
])  # fmt: skip
TIME = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
KEYS = ["a.jpg", "a b+c.jpg", "50%/é😀.jpg", 'q"uo\'te,.jpg', "new\nline.jpg", "p//b.jpg"]
EVERYTHING = Rules(all_files=True)


def row(key, size=3, latest=True, deleted=False, etag="abc"):
    return {"key": key, "size": None if deleted else size, "is_latest": latest, "is_delete_marker": deleted,
            "e_tag": etag, "bucket": "photos", "version_id": "v", "last_modified_date": TIME}


def csv_file(rows):
    """A file as S3 writes it: quoted fields, encoded keys, no header."""
    def line(row):
        flags = [str(row[name]).lower() for name in ("is_latest", "is_delete_marker")]
        size = "" if row["size"] is None else row["size"]
        fields = [row["bucket"], quote_plus(row["key"], safe="/"), row["version_id"], *flags, size,
                  "2026-01-02T03:04:05.678Z", row["e_tag"] or "", "STANDARD", "false"]
        return ",".join(f'"{field}"' for field in fields) + "\n"

    return gzip.compress("".join(map(line, rows)).encode())


def parquet_file(rows, columns=tuple(PARQUET_SCHEMA.names)):
    schema = pa.schema([PARQUET_SCHEMA.field(name) for name in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink := io.BytesIO())
    return sink.getvalue()


def publish(bucket, file_format, contents, **changes):
    """Put an inventory with these files into the bucket. Returns the URI of its manifest."""
    ending = {"CSV": "csv.gz", "Parquet": "parquet"}.get(file_format, "orc")
    described = []
    for i, content in enumerate(contents):
        key = f"inv/photos/daily/data/{i}-d754c470.{ending}"
        bucket.put(key, content)
        described.append({"key": key, "size": len(content), "MD5checksum": "0"})
    manifest = {
        "sourceBucket": "photos", "destinationBucket": f"arn:aws:s3:::{bucket.name}", "version": "2016-11-30",
        "creationTimestamp": "1514944800000", "fileFormat": file_format, "files": described,
        "fileSchema": CSV_SCHEMA if file_format == "CSV" else "message s3.inventory { required binary key (UTF8); }",
    } | changes   # fmt: skip
    bucket.put("inv/photos/daily/2026-01-02T01-00Z/manifest.json", json.dumps(manifest).encode())
    return f"{bucket.uri}/inv/photos/daily/2026-01-02T01-00Z/manifest.json"


def read(uri, spans=(("", None),), rules=EVERYTHING):
    """All rows, and what was skipped. Checks that the stretches cover the spans."""
    skips = rules.key_rule("s3://photos", "")
    stretches = list(inventory_stretches(read_inventory(uri, FROM_ENVIRONMENT), FROM_ENVIRONMENT, skips, spans))
    assert merged(stretch.span for stretch in stretches) == merged(spans)
    assert all(stretch.rows.schema == LISTING for stretch in stretches)
    skipped = sum((Counter(stretch.skipped) for stretch in stretches), Counter())
    rows = [row for stretch in stretches for row in stretch.rows.to_pylist()]
    assert len(rows) + skipped.total() == sum(stretch.seen for stretch in stretches)
    return rows, skipped


FILE = {"CSV": csv_file, "Parquet": parquet_file}
BOTH = pytest.mark.parametrize("file_format", ["CSV", "Parquet"])


@BOTH
@pytest.mark.parametrize("files", [[], [[]], [[], []]])
def test_an_empty_inventory(bucket, file_format, files):
    assert read(publish(bucket, file_format, [FILE[file_format](rows) for rows in files])) == ([], {})


@BOTH
def test_rows_are_those_of_a_listing(bucket, file_format):
    files = [[row(KEYS[0], etag=None)], [], [row(key) for key in KEYS[1:]]]
    rows, skipped = read(publish(bucket, file_format, [FILE[file_format](rows) for rows in files]))
    assert not skipped and sorted(row["uri"] for row in rows) == sorted(f"s3://photos/{key}" for key in KEYS)
    found = {row["uri"].removeprefix("s3://photos/"): row for row in rows}
    assert found["a b+c.jpg"] == {
        "uri": "s3://photos/a b+c.jpg", "container": None, "offset": None, "size": 3, "etag": "abc", "mtime": TIME,
    }
    assert found["a.jpg"]["etag"] is None


@BOTH
def test_old_versions_and_delete_markers_are_skipped(bucket, file_format):
    rows = [row("a.jpg"), row("a.jpg", latest=False), row("b.jpg", deleted=True),
            row("b.jpg", latest=False, deleted=True), row("c.jpg")]
    found, skipped = read(publish(bucket, file_format, [FILE[file_format](rows)]))
    assert [row["uri"] for row in found] == ["s3://photos/a.jpg", "s3://photos/c.jpg"]
    assert skipped == {"old versions": 2, "delete markers": 1}


@BOTH
def test_names_are_skipped_as_in_a_folder(bucket, file_format):
    rows = [row(key) for key in ["a.jpg", "notes.txt", ".git/a.jpg", "sub/noext", "own/part.jpg"]] + [row("sub/", 0)]
    uri = publish(bucket, file_format, [FILE[file_format](rows)])
    found, skipped = read(uri, rules=Rules("s3://photos/own"))
    assert [row["uri"] for row in found] == ["s3://photos/a.jpg", "s3://photos/sub/noext"]
    assert skipped == {
        "hidden": 1, "with another extension": 1, "directory markers": 1, "of the output itself": 1
    }


@BOTH
def test_missing_columns_are_null(bucket, file_format):
    if file_format == "CSV":
        uri = publish(bucket, "CSV", [gzip.compress(b'"photos","a%2Bb.jpg"\n')], fileSchema="Bucket, Key")
    else:
        uri = publish(bucket, "Parquet", [parquet_file([row("a+b.jpg")], ("bucket", "key"))])
    [found], _ = read(uri)
    assert found == dict.fromkeys(LISTING.names) | {"uri": "s3://photos/a+b.jpg"}


def test_keys_in_parquet_are_raw(bucket):
    [found], _ = read(publish(bucket, "Parquet", [parquet_file([row("a%2Bb+c.jpg")])]))
    assert found["uri"] == "s3://photos/a%2Bb+c.jpg"


def test_csv_that_is_not_compressed(bucket):
    bucket.put("plain.csv", b'"photos","a.jpg"\n"photos","b.jpg"')
    uri = publish(bucket, "CSV", [], fileSchema="Bucket, Key", files=[{"key": "plain.csv"}])
    assert [row["uri"] for row in read(uri)[0]] == ["s3://photos/a.jpg", "s3://photos/b.jpg"]


@BOTH
def test_a_listing_resumes_at_any_position(bucket, file_format, monkeypatch):
    """Three files of 10 rows, in batches of 4 or 2: the rows before a position and those after it are all rows."""
    monkeypatch.setattr(module, "_BATCH_ROWS", 4)
    monkeypatch.setattr(module, "_CSV_BLOCK_BYTES", 150)
    names = [f"{i:02}.jpg" for i in range(30)]
    files = [FILE[file_format]([row(name) for name in names[i : i + 10]]) for i in (0, 10, 20)]
    uri = publish(bucket, file_format, files)
    for done in (0, 1, 2, 4, 7, 9, 10, 11, 20, 29):
        file, rows = divmod(done, 10)
        place = f"{file:08}:{rows:012}" if rows else f"{file:08}" if file else ""
        after = [row["uri"][-6:] for row in read(uri, [(place, None)])[0]]
        before = [row["uri"][-6:] for row in read(uri, [("", place)])[0]] if place else []
        assert (sorted(before), sorted(after)) == (names[:done], names[done:])


def test_several_gaps(bucket):
    files = [csv_file([row(f"{file}{i}.jpg") for i in range(5)]) for file in "ab"]
    gaps = [("00000000:000000000001", "00000000:000000000003"), ("00000000:000000000004", "00000001:000000000002")]
    rows, _ = read(publish(bucket, "CSV", files), gaps)
    assert sorted(row["uri"][-6:-4] for row in rows) == ["a1", "a2", "a4", "b0", "b1"]


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (None, {}, "cannot read .*data/0-d754c470.csv.gz: no such object"),
        (csv_file([row("a")])[:-5], {}, "Compressed file ended before"),
        (csv_file([row("a")])[:20] + b"\xff" * 40, {}, "cannot read"),
        (b"none", {}, "Not a gzipped file"),
        (gzip.compress(b'"b","k"\n'), {}, "Expected 10 columns, got 2"),
        (csv_file([row("a")]), {"fileSchema": CSV_SCHEMA.replace("Size", "VersionId", 1)}, None),
        (gzip.compress(b'"b","k","v","maybe","false","1","","","",""\n'), {}, "maybe"),
        (b"no Parquet", {"fileFormat": "Parquet"}, "Parquet magic bytes not found"),
        (parquet_file([row("a")], ("bucket",)), {"fileFormat": "Parquet"}, "no column is named key, only bucket"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(bucket, content, changes, message):
    uri = publish(bucket, "CSV", [content or b""], **changes)
    if content is None:
        bucket.client.delete_object(Bucket=bucket.name, Key="inv/photos/daily/data/0-d754c470.csv.gz")
    if message is None:
        assert len(read(uri)[0]) == 1
        return
    with pytest.raises(InputError, match=message) as error:
        read(uri)
    assert "data/0-d754c470.csv.gz" in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_another_size_is_refused(bucket):
    key = "inv/photos/daily/data/0-d754c470.csv.gz"
    uri = publish(bucket, "CSV", [b""], files=[{"key": key, "size": 1000}])
    with pytest.raises(InputError, match="it has 0 bytes, but 1,000 according to the manifest"):
        read(uri)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not the manifest.json of an S3 Inventory"),
        (b"[]", "is not the manifest.json"),
        (b'{"files": []}', "is not the manifest.json of an S3 Inventory .KeyError..sourceBucket"),
        (b"\xff", "is not the manifest.json"),
    ],
)
def test_another_file_is_refused(bucket, content, message):
    bucket.put("x/manifest.json", content)
    with pytest.raises(InputError, match=message):
        read_inventory(f"{bucket.uri}/x/manifest.json", FROM_ENVIRONMENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "ORC"}, "are ORC: choose Apache Parquet, or CSV, as the output format"),
        ({"fileSchema": "Bucket, Size"}, "no column Key"),
        ({"files": [1]}, "is not the manifest.json"),
        ({"files": None}, "is not the manifest.json"),
    ],
)
def test_an_unusable_inventory_is_refused(bucket, changes, message):
    with pytest.raises(InputError, match=message):
        read_inventory(publish(bucket, "CSV", [], **changes), FROM_ENVIRONMENT)


def test_a_missing_manifest(bucket):
    with pytest.raises(InputError, match=r"cannot read s3://.*/manifest.json: no such object"):
        read_inventory(f"{bucket.uri}/manifest.json", FROM_ENVIRONMENT)


def test_a_local_copy_of_the_manifest_is_read(tmp_path, bucket, monkeypatch):
    publish(bucket, "CSV", [csv_file([row("a.jpg")])])
    content = bucket.get("inv/photos/daily/2026-01-02T01-00Z/manifest.json")
    (tmp_path / "manifest.json").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for name in ("manifest.json", str(tmp_path / "manifest.json")):
        assert len(read(name)[0]) == 1
    assert isinstance(read_inventory("manifest.json", FROM_ENVIRONMENT), Inventory)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://b/x/manifest.json", True), ("manifest.json", True), ("s3://b/manifest.json/", False), ("a.json", False)],
)
def test_is_inventory(path, expected):
    assert is_inventory(path) is expected
