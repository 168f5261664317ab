from __future__ import annotations

import obstore
import pytest

from pipeline.storage.clients import open_bucket
from pipeline.storage.uris import (
    StoreOptions,
    UriError,
    is_addressable,
    is_local,
    is_remote,
    local_path,
    local_uri,
    parse_input_uri,
    split_uri,
)


@pytest.mark.parametrize(
    ("uri", "stripped", "options"),
    [
        (".", ".", StoreOptions()),
        ("/photos/a?region=x", "/photos/a?region=x", StoreOptions()),
        ("s3://b/k", "s3://b/k", StoreOptions()),
        ("s3://b/k?region=eu-west-1", "s3://b/k", StoreOptions(region="eu-west-1")),
        ("s3://b?endpoint_override=http://h:9000", "s3://b", StoreOptions("http://h:9000")),
        ("s3://b/k?endpoint_override=h:9000&scheme=http", "s3://b/k", StoreOptions("http://h:9000")),
        ("s3://b/k?endpoint=h", "s3://b/k", StoreOptions("https://h")),
        ("s3://b/k?endpoint_override=http%3A%2F%2Fh%3A1", "s3://b/k", StoreOptions("http://h:1")),
        ("gs://b/k?anonymous=true", "gs://b/k", StoreOptions(anonymous=True)),
        ("s3://b/k?anonymous=false", "s3://b/k", StoreOptions()),
        # "?" in a key or a glob
        ("s3://b/what?.jpg", "s3://b/what?.jpg", StoreOptions()),
        ("s3://b/what?size=3", "s3://b/what?size=3", StoreOptions()),
        ("s3://b/wh?t.jpg?region=r", "s3://b/wh?t.jpg", StoreOptions(region="r")),
        ("s3://b/a@b.jpg", "s3://b/a@b.jpg", StoreOptions()),
        ("https://h/k?region=x", "https://h/k?region=x", StoreOptions()),
    ],
)
def test_parse_input_uri(uri, stripped, options):
    assert parse_input_uri(uri) == (stripped, options)


@pytest.mark.parametrize("uri", ["s3://key:secret@b/k", "https://user:word@host/k"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(UriError, match="AWS_ACCESS_KEY_ID") as error:
        parse_input_uri(uri)
    assert "secret" not in str(error.value).split("AWS_")[0] and "word@" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "bucket_uri", "key"),
    [
        ("s3://b", "s3://b", ""),
        ("s3://b/", "s3://b", ""),
        ("s3://b/a b%20c#é?.jpg", "s3://b", "a b%20c#é?.jpg"),
        ("gs://b//a", "gs://b", "/a"),
        ("https://h:1/a%20b.jpg?sig=1", "https://h:1", "a%20b.jpg?sig=1"),
    ],
)
def test_split_uri(uri, bucket_uri, key):
    assert split_uri(uri) == (bucket_uri, key)


@pytest.mark.parametrize("uri", ["", "/local", "ftp://h/a", "s3://", "s3:///k"])
def test_split_uri_refuses(uri):
    with pytest.raises(UriError, match=r"not a URI|no bucket"):
        split_uri(uri)


@pytest.mark.parametrize(
    ("path", "remote"),
    [("", False), ("s3://b", True), ("gs://b", True), ("https://h", True), ("file:///a", False), ("/s3://b", False)],
)
def test_is_remote(path, remote):
    assert is_remote(path) is remote


ADDRESSABLE = ["a.jpg", "a b%20c#é?.jpg", 'q"uote.jpg', "a+b.jpg", "~t{}[]|^`\\<>*.jpg", "😀/e\u0301.jpg", "..a/b.."]


@pytest.mark.parametrize("key", ADDRESSABLE)
def test_an_addressable_key_is_read_raw(bucket, key):
    bucket.put(key, b"content")
    assert is_addressable(key)
    bucket_uri, found = split_uri(f"{bucket.uri}/{key}")
    assert bytes(obstore.get(open_bucket(bucket_uri), found).bytes()) == b"content"


@pytest.mark.parametrize("key", ["", "/lead.jpg", "dir/", "a//b.jpg", "a/../b.jpg", "./z.jpg", "tab\t.jpg", "a\nb"])
def test_a_key_that_obstore_changes_or_refuses_is_not_addressable(key):
    assert not is_addressable(key)


@pytest.mark.parametrize(
    ("path", "local"),
    [("", True), ("a.jpg", True), ("/s3://b", True), ("file:///a", True), ("FILE:///a", True), ("s3://b", False),
     ("ftp://h/a", False)],
)
def test_is_local(path, local):
    assert is_local(path) is local


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/a", "/a"),
        ("/50% off #1?\n\"é 😀.jpg", "/50% off #1?\n\"é 😀.jpg"),
        ("/caf\udce9 %.jpg", "file:///caf%E9%20%25.jpg"),
    ],
)
def test_local_uri_encodes_only_names_that_are_not_utf_8(path, uri):
    assert local_uri(path) == uri
    assert local_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("", ""),
        ("relative/50%20 off?#.jpg", "relative/50%20 off?#.jpg"),
        ("/a/50%20 off?#.jpg", "/a/50%20 off?#.jpg"),
        ("s3://b/a%20b", "s3://b/a%20b"),
        ("file:///a/b%20c.jpg", "/a/b c.jpg"),
        ("file://localhost/a/b%20c.jpg", "/a/b c.jpg"),
        ("FILE:///a", "/a"),
        ("file:///", "/"),
        ("file:///a/%FF%20.jpg", "/a/\udcff .jpg"),
    ],
)
def test_local_path(uri, path):
    assert local_path(uri) == path


@pytest.mark.parametrize("uri", ["file://other/a", "file://", "file://name", "file://./name", "file://localhost"])
def test_a_file_uri_of_another_host_or_a_relative_path_is_refused(uri):
    with pytest.raises(UriError, match="file:///folder/name"):
        local_path(uri)
