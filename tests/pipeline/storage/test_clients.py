from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from pipeline.storage.aws import s3_client
from pipeline.storage.clients import open_bucket, plain_etag
from pipeline.storage.uris import StoreOptions


@pytest.mark.parametrize(
    ("etag", "plain"), [(None, None), ("", None), ('""', None), ('"ab-2"', "ab-2"), ("ab", "ab")]
)
def test_plain_etag(etag, plain):
    assert plain_etag(etag) == plain


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
