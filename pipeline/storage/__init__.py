"""Local disks and object stores behind one interface."""

from __future__ import annotations

from pipeline.storage.base import FileVersion, Storage, StoredFile
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.single_writer import SingleWriterStorage
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    FROM_ENVIRONMENT,
    StoreOptions,
    UriError,
    is_addressable,
    is_local,
    local_path,
    split_uri,
    unsupported,
    uri_scheme,
)

__all__ = [
    "FileVersion", "LocalStorage", "ObjectStorage", "SingleWriterStorage", "Storage", "StoredFile", "open_storage",
]


def open_storage(uri: str, options: StoreOptions = FROM_ENVIRONMENT, *, single_writer: bool = False) -> Storage:
    """The storage at a local path, `file://…`, `s3://bucket/prefix` or `gs://bucket/prefix`. Creates nothing yet.

    single_writer: nobody else writes there, so the store needs no conditional writes.
    Raises UriError for anything else, and for a prefix that the clients of object stores refuse.
    """
    storage = _storage(uri, options)
    return SingleWriterStorage(storage) if single_writer else storage


def _storage(uri: str, options: StoreOptions) -> Storage:
    if is_local(uri):
        return LocalStorage(local_path(uri))
    if uri_scheme(uri) not in BUCKET_SCHEMES:
        raise UriError(unsupported(uri, "write to", "a local folder, s3://bucket/prefix or gs://bucket/prefix"))
    bucket_uri, prefix = split_uri(uri)
    prefix = prefix.rstrip("/")
    if prefix and not is_addressable(prefix):
        raise UriError(
            f"cannot write to {uri!r}: choose a prefix without control characters and without empty, '.' or '..' parts"
        )
    return ObjectStorage(bucket_uri, prefix, options)
