from __future__ import annotations

import pytest

from pipeline.storage import ObjectStorage, open_storage
from pipeline.storage.uris import StoreOptions
from tests.faults.proxy import Rule, failing


def test_directory_markers_are_not_listed(bucket):
    for key in ["out/", "out/faces/", "out/faces/a", "out/faces/sub/"]:
        bucket.put(key)
    storage = open_storage(f"{bucket.uri}/out")
    assert [file.path for file in storage.list("faces")] == ["faces/a"]
    assert storage.list("") == []


def test_only_the_needed_bytes_are_fetched(bucket, monkeypatch):
    storage = open_storage(bucket.uri)
    storage.write("large", b"0" * (5 << 20))
    asked = []
    ranged = ObjectStorage.read_range

    def noting(self, path, start, end):
        asked.append((start, end))
        return ranged(self, path, start, end)

    monkeypatch.setattr(ObjectStorage, "read_range", noting)
    with storage.open("large") as file:
        file.seek(3 << 20)
        assert file.read(10) == b"0" * 10
    assert asked == [(3 << 20, 4 << 20)]


def test_a_missing_bucket_is_named(s3_endpoint):
    storage = open_storage("s3://no-such-bucket/out", StoreOptions(s3_endpoint))
    with pytest.raises(FileNotFoundError, match=r"no such object or bucket.*s3://no-such-bucket/out/a"):
        storage.write("a", b"1")
    with pytest.raises(FileNotFoundError, match="bucket"):
        storage.create("a", b"1")
    with pytest.raises(OSError, match="s3://no-such-bucket/out/faces"):
        storage.list("faces")


def test_no_access_to_a_bucket_is_a_permission_error(bucket, s3_endpoint):
    storage = open_storage(bucket.uri + "/out", StoreOptions(s3_endpoint, anonymous=True))
    open_storage(bucket.uri + "/out").write("a", b"1")
    with pytest.raises(PermissionError, match=r"access denied.*/out/a") as error:
        storage.read("a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["reset", "reset when done"])
def test_a_conditional_write_whose_answer_is_lost_is_tried_again(bucket, s3_endpoint, fault):
    """After "reset when done" the second try finds our own object; the caller reads who wrote it."""
    with failing(s3_endpoint, Rule(fault, "PUT", times=1)) as (endpoint, proxy):
        created = open_storage(f"{bucket.uri}/out", StoreOptions(endpoint)).create("a", b"1")
    assert proxy.injected[fault] == 1
    assert (created is not None) == (fault == "reset")
    assert bucket.get("out/a") == b"1"
