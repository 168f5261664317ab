from __future__ import annotations

import http.server
import pickle
import threading
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from pipeline.storage.clients import open_bucket, plain_etag, s3_client, s3_endpoint
from pipeline.storage.uris import StoreOptions, UriError, split_uri


@pytest.mark.parametrize(
    ("etag", "plain"), [(None, None), ("", None), ('""', None), ('"ab-2"', "ab-2"), ("ab", "ab")]
)
def test_plain_etag(etag, plain):
    assert plain_etag(etag) == plain


def test_options_win_over_the_environment(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert s3_endpoint(StoreOptions()) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general")
    assert s3_endpoint(StoreOptions()) == "http://general"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://special")
    assert s3_endpoint(StoreOptions()) == "http://special"
    assert s3_endpoint(StoreOptions("http://option")) == "http://option"


def test_there_is_one_client_per_endpoint(bucket, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")   # nothing listens there
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


def test_http_objects_are_read_with_their_query():
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
