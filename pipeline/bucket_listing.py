"""The objects of a bucket, page by page in the order of their keys, and errors of it that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import obstore

from pipeline.names import InputError
from pipeline.objectstore import StoreOptions, UriError, open_bucket, plain_etag, s3_client

Found = tuple[str, int, str | None, datetime]   # key, size, etag, mtime


def list_objects(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[Found]:
    """The objects whose key begins so, in order of keys; read page by page. Raises InputError."""
    for page in list_pages(bucket_uri, prefix, options):
        yield from page


def list_pages(bucket_uri: str, prefix: str, options: StoreOptions, after: str = "") -> Iterator[list[Found]]:
    """The objects whose key begins so and is greater than `after`, as pages of up to 1,000. Raises InputError.

    The order is that of the keys' UTF-8, which is Python's order of strings too.
    """
    with explained(bucket_uri):
        yield from (_s3_pages if bucket_uri.startswith("s3://") else _gs_pages)(bucket_uri, prefix, options, after)


def _s3_pages(bucket_uri: str, prefix: str, options: StoreOptions, after: str) -> Iterator[list[Found]]:
    # boto3, since one key with an empty, "." or ".." part makes obstore's whole listing fail. Left alone it asks for
    # keys percent-encoded and decodes them: XML itself cannot hold control characters.
    pages = s3_client(options).get_paginator("list_objects_v2")
    start = {"StartAfter": after} if after else {}
    for page in pages.paginate(Bucket=bucket_uri.removeprefix("s3://"), Prefix=prefix, **start):
        yield [
            (item["Key"], item["Size"], plain_etag(item.get("ETag")), item["LastModified"])
            for item in page.get("Contents", ())
        ]


def _gs_pages(bucket_uri: str, prefix: str, options: StoreOptions, after: str) -> Iterator[list[Found]]:
    # obstore lists whole folders: take the one that holds the prefix, and of it what begins so.
    folder = prefix.rpartition("/")[0]
    pages = obstore.list(open_bucket(bucket_uri, options), folder or None, offset=after or None, chunk_size=1000)
    for metas in pages:
        yield [_found(meta) for meta in metas if meta["path"].startswith(prefix)]


def _found(meta: Any) -> Found:
    return meta["path"], meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"]


@contextlib.contextmanager
def explained(bucket_uri: str) -> Iterator[None]:
    """Turn the clients' errors into InputErrors that say what to do; a UriError says it already."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except UriError:
        raise
    except (ClientError, BotoCoreError, OSError, ValueError, obstore.exceptions.BaseError) as error:
        code = error.response["Error"].get("Code") if isinstance(error, ClientError) else None
        if code == "NoSuchBucket":
            fix = "there is no such bucket at this endpoint; check its name and AWS_ENDPOINT_URL"
        elif code == "AccessDenied" or re.search(r"status code: 40[13]", str(error)):   # so obstore, without a class
            fix = "access denied; check the credentials, or add ?anonymous=true for a public bucket"
        elif code in ("ExpiredToken", "RequestExpired"):
            fix = "the credentials have expired; log in again"
        elif isinstance(error, NoCredentialsError):
            fix = (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or add ?anonymous=true for a public "
                "bucket"
            )
        elif isinstance(error, obstore.exceptions.InvalidPathError):
            fix = "the client for Google Storage lists no keys with an empty, '.' or '..' part; rename this one"
        else:
            fix = "check the credentials, the endpoint and the region"
        raise InputError(f"cannot list {bucket_uri}: {fix} ({str(error).splitlines()[0]})") from error
