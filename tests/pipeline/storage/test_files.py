from __future__ import annotations

import io

import pytest

from pipeline.storage.files import RangeReader, open_file
from pipeline.storage.uris import FROM_ENVIRONMENT, UriError


def test_range_reader():
    content = bytes(range(10))
    asked = []

    def read_range(start, end):
        asked.append((start, end))
        return content[start:end]

    file = RangeReader(read_range, len(content))
    assert file.read(3) == content[:3] and file.read(3) == content[3:6]
    assert file.seek(-2, io.SEEK_END) == 8 and file.read(5) == content[8:]
    assert file.read(5) == b"" and file.seek(20) == 20 and file.read(1) == b""
    assert file.seek(1) == 1 and file.seek(1, io.SEEK_CUR) == 2 and file.read(1) == content[2:3]
    assert asked == [(0, 3), (3, 6), (8, 10), (2, 3)]


@pytest.mark.parametrize("content", [b"", b"0123456789"])
def test_open_file_reads_files_and_objects_alike(tmp_path, bucket, web, content):
    (tmp_path / "a b").write_bytes(content)
    bucket.put("a b", content)
    uris = [f"{tmp_path}/a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b", f"{bucket.uri}/a b"]
    if content:       # a web server refuses a range of an empty file
        web.files["/a%20b?sig=1"] = content
        uris.append(f"{web.url}/a%20b?sig=1")
    for uri in uris:
        with open_file(uri, FROM_ENVIRONMENT) as file:
            assert file.seek(0, io.SEEK_END) == len(content)
            assert file.seek(2) == 2 and file.read(3) == content[2:5]


def test_a_missing_file(tmp_path, bucket):
    for uri in (f"{tmp_path}/none", f"file://{tmp_path}/none", f"{bucket.uri}/none"):
        with pytest.raises(FileNotFoundError):
            open_file(uri, FROM_ENVIRONMENT)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("s3://b/a//b.tar", OSError, "cannot read the key 'a//b.tar': rename the object"),
        ("file://other/a.tar", UriError, "file:///folder/name"),
        ("ftp://h/a.tar", UriError, "is not a URI of s3"),
    ],
)
def test_a_uri_that_cannot_be_opened(uri, error, message):
    with pytest.raises(error, match=message):
        open_file(uri, FROM_ENVIRONMENT)
