from __future__ import annotations

import http.server
import pickle
import threading
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from pipeline.storage.objectstore import (
    StoreOptions,
    UriError,
    is_addressable,
    is_remote,
    open_bucket,
    parse_input_uri,
    plain_etag,
    s3_client,
    s3_endpoint,
    split_uri,
)


@pytest.mark.parametrize(
    ("uri", "stripped", "options"),
    [
        ("", "", StoreOptions()),
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
        ("https://h:1/a%20b.jpg", "https://h:1", "a b.jpg"),
        ("https://h/a.jpg?sig=1", "https://h/a.jpg?sig=1", ""),
        ("https://h/a//b.jpg", "https://h/a//b.jpg", ""),
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


@pytest.mark.parametrize(
    ("etag", "plain"), [(None, None), ("", None), ('""', None), ('"ab-2"', "ab-2"), ("ab", "ab")]
)
def test_plain_etag(etag, plain):
    assert plain_etag(etag) == plain


ADDRESSABLE = ["a.jpg", "a b%20c#é?.jpg", 'q"uote.jpg', "a+b.jpg", "~t{}[]|^`\\<>*.jpg", "😀/e\u0301.jpg", "..a/b.."]


@pytest.mark.parametrize("key", ADDRESSABLE)
def test_an_addressable_key_is_read_raw(bucket, key):
    bucket.put(key, b"content")
    assert is_addressable(key)
    bucket_uri, found = split_uri(f"{bucket.uri}/{key}")
    assert bytes(obstore.get(open_bucket(bucket_uri), found).bytes()) == b"content"


@pytest.mark.parametrize("key", ["", "/lead.jpg", "dir/", "a//b.jpg", "a/../b.jpg", "./z.jpg", "tab\t.jpg", "a\nb"])
def test_a_key_that_obstore_would_change_or_refuse_is_told(key):
    assert not is_addressable(key)


def test_options_win_over_the_environment(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert s3_endpoint(StoreOptions()) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general")
    assert s3_endpoint(StoreOptions()) == "http://general"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special")
    assert s3_endpoint(StoreOptions()) == "http://special"
    assert s3_endpoint(StoreOptions("http://option")) == "http://option"


def test_clients_of_an_endpoint_option_and_one_per_process(bucket, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")   # nobody listens there
    options = pickle.loads(pickle.dumps(StoreOptions(s3_endpoint)))
    bucket.put("k", b"1")
    assert bytes(obstore.get(open_bucket(bucket.uri, options), "k").bytes()) == b"1"
    assert open_bucket(bucket.uri, options) is open_bucket(bucket.uri, StoreOptions(s3_endpoint))
    assert s3_client(options).list_objects_v2(Bucket=bucket.name)["KeyCount"] == 1


def test_times_are_read_from_listings_and_from_headers(bucket):
    bucket.put("k", b"1")
    client = s3_client()
    [listed] = client.list_objects_v2(Bucket=bucket.name)["Contents"]
    read = client.get_object(Bucket=bucket.name, Key="k")["LastModified"]
    assert listed["LastModified"].utcoffset() == read.utcoffset() == timedelta(0)
    assert listed["LastModified"].replace(microsecond=0) == read
    assert abs(datetime.now(UTC) - read) < timedelta(minutes=1)


def test_an_anonymous_client_signs_nothing(bucket, s3_endpoint):
    options = StoreOptions(s3_endpoint, anonymous=True)
    bucket.client.put_object(Bucket=bucket.name, Key="public", Body=b"1", ACL="public-read")
    bucket.put("private", b"2")
    assert bytes(obstore.get(open_bucket(bucket.uri, options), "public").bytes()) == b"1"
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        obstore.get(open_bucket(bucket.uri, options), "private")


def test_missing_credentials_are_explained(monkeypatch, tmp_path, s3_endpoint):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UriError, match="no AWS credentials found"):
        open_bucket("s3://bucket-without-credentials")


def test_http_objects_are_reached_with_their_query():
    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for path in ["/a%20b.jpg", "/a%20b.jpg?sig=%2F1", "/a//b.jpg"]:
        store, key = split_uri(f"http://127.0.0.1:{server.server_port}{path}")
        assert bytes(obstore.get(open_bucket(store), key).bytes()).decode() == path
    server.shutdown()
