"""Local disks and object stores behind one interface, and scratch folders."""

from __future__ import annotations

from urllib.parse import unquote

from pipeline.storage.base import FileVersion, Storage, StoredFile
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStorage
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    FROM_ENVIRONMENT,
    StoreOptions,
    UriError,
    is_addressable,
    split_uri,
    uri_scheme,
)

__all__ = ["FileVersion", "LocalStorage", "ObjectStorage", "Storage", "StoredFile", "open_storage"]


def open_storage(uri: str, options: StoreOptions = FROM_ENVIRONMENT) -> Storage:
    """The storage at a local path, `file://…`, `s3://bucket/prefix` or `gs://bucket/prefix`; nothing is created yet.

    Raises UriError for anything else, and for a prefix that object-store clients do not take.
    """
    scheme = uri_scheme(uri)
    if scheme == "file":
        return LocalStorage(unquote(uri.split("://", 1)[1]))
    if scheme is None:
        return LocalStorage(uri)
    if scheme not in BUCKET_SCHEMES:
        raise UriError(f"cannot write to {uri!r}: give a local folder, s3://bucket/prefix or gs://bucket/prefix")
    bucket_uri, prefix = split_uri(uri)
    prefix = prefix.rstrip("/")
    if prefix and not is_addressable(prefix):
        raise UriError(f"cannot write to {uri!r}: no empty, '.' or '..' parts and no control characters, please")
    return ObjectStorage(bucket_uri, prefix, options)
