"""The objects of a bucket, in the order of their keys."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import obstore

from pipeline.input.names import InputError, literal_beginning, spellings
from pipeline.input.parallel_listing import PAGE_KEYS, list_in_parallel
from pipeline.input.rows import FoundObject, Span, Stretch, listing_table
from pipeline.input.rules import KeyRule
from pipeline.storage.aws import s3_client
from pipeline.storage.clients import open_bucket, plain_etag
from pipeline.storage.faults import ACCESS_DENIED, bucket_fault, is_access_denied, one_line
from pipeline.storage.uris import StoreOptions, UriError


def folder_key(key: str) -> str:
    """What all keys in a folder begin with: "a/" for "a" and for "a/"; "" for the whole bucket."""
    return key.rstrip("/") + "/" if key.strip("/") else key


def list_objects(bucket_uri: str, prefix: str, options: StoreOptions) -> Iterator[FoundObject]:
    """The objects whose key begins with the prefix, in the order of keys, read page by page. Raises InputError."""
    for page in list_pages(bucket_uri, prefix, options):
        yield from page


def list_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str = "", page_size: int = PAGE_KEYS
) -> Iterator[list[FoundObject]]:
    """The objects whose key begins with the prefix and is greater than `after`, in pages. Raises InputError.

    Keys are ordered by their UTF-8 bytes, which is also the order of Python's strings. The clients retry throttled
    requests themselves (`clients.s3_client`, `clients.RETRY`).
    """
    list_some = _s3_pages if bucket_uri.startswith("s3://") else _gs_pages
    with input_errors(bucket_uri):
        yield from list_some(bucket_uri, prefix, options, after, page_size)


def find_object(bucket_uri: str, key: str, options: StoreOptions) -> FoundObject | None:
    """The object of exactly this key; None if there is none. Raises InputError."""
    if bucket_uri.startswith("s3://"):   # of all keys that begin with this one it is the first
        first = next(list_objects(bucket_uri, key, options), None)
        return first if first and first.key == key else None
    with input_errors(bucket_uri):
        try:
            return _found_object(obstore.head(open_bucket(bucket_uri, options), key))
        except FileNotFoundError:
            return None


def existing_key(bucket_uri: str, key: str, options: StoreOptions) -> tuple[str, str]:
    """The longest beginning of a key that exists under that very name, and what comes after it. Raises InputError.

    Parts without wildcards in ASCII are taken to exist, which saves requests. A part that is there in another Unicode
    form exists, and is spelt as there.
    """
    beginning, parts = "", key.split("/")
    for i, part in enumerate(parts):
        is_last = i + 1 == len(parts)
        if not part.isascii() or literal_beginning(part) is not None:
            found = (name for name in spellings(part) if _exists(bucket_uri, f"{beginning}{name}", is_last, options))
            spelt = next(found, None)
            if spelt is None:
                return beginning, "/".join(parts[i:])
            part = spelt
        beginning += part if is_last else f"{part}/"
    return beginning, ""


def _exists(bucket_uri: str, key: str, may_be_object: bool, options: StoreOptions) -> bool:
    """Whether there is a folder with this key, or an object."""
    if next(list_objects(bucket_uri, f"{key}/", options), None) is not None:
        return True
    return may_be_object and key != "" and find_object(bucket_uri, key, options) is not None


def bucket_stretches(
    bucket_uri: str, folder: str, options: StoreOptions, skips: KeyRule, spans: Iterable[Span], threads: int
) -> Iterator[Stretch]:
    """The objects whose key is in the spans and begins with `folder`, as stretches. Raises InputError."""

    def pages(after: str, page_size: int) -> Iterator[list[FoundObject]]:
        return list_pages(bucket_uri, folder, options, after, page_size)

    for span, found in list_in_parallel(pages, folder, spans, threads):
        skipped: Counter[str] = Counter()
        listed = []
        for each in found:
            if reason := skips(each.key, each.size):
                skipped[reason] += 1
            else:
                listed.append(each)
        rows = listing_table({
            "uri": [f"{bucket_uri}/{each.key}" for each in listed],
            "size": [each.size for each in listed],
            "etag": [each.etag for each in listed],
            "mtime": [each.mtime for each in listed],
        })
        yield Stretch(span, rows, len(found), skipped)


def _s3_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str, page_size: int
) -> Iterator[list[FoundObject]]:
    # boto3, because one key with an empty, "." or ".." part makes obstore's whole listing fail. By default boto3 asks
    # for percent-encoded keys and decodes them: XML itself cannot hold control characters.
    request: dict[str, Any] = {"Bucket": bucket_uri.removeprefix("s3://"), "Prefix": prefix}
    if after:
        request["StartAfter"] = after
    paginator = s3_client(options).get_paginator("list_objects_v2")
    for page in paginator.paginate(**request, PaginationConfig={"PageSize": page_size}):
        yield [
            FoundObject(item["Key"], item["Size"], plain_etag(item.get("ETag")), item["LastModified"])
            for item in page.get("Contents", ())
        ]


def _gs_pages(
    bucket_uri: str, prefix: str, options: StoreOptions, after: str, page_size: int
) -> Iterator[list[FoundObject]]:
    # obstore lists only whole folders: list the one that contains the prefix, and keep what begins with the prefix.
    folder = prefix.rpartition("/")[0]
    store = open_bucket(bucket_uri, options)
    for metas in obstore.list(store, folder or None, offset=after or None, chunk_size=page_size):
        yield [_found_object(meta) for meta in metas if meta["path"].startswith(prefix)]


def _found_object(meta: Any) -> FoundObject:
    return FoundObject(meta["path"], meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"])


@contextlib.contextmanager
def input_errors(bucket_uri: str) -> Iterator[None]:
    """Turn the clients' errors into InputErrors that name the next step. A UriError names it already."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except UriError:
        raise
    except (ClientError, BotoCoreError, OSError, ValueError, obstore.exceptions.BaseError) as error:
        raise InputError(f"cannot list {bucket_uri}: {_next_step(error)} ({one_line(error)})") from error


def _next_step(error: Exception) -> str:
    if fault := bucket_fault(error):
        return fault
    if is_access_denied(error):
        return ACCESS_DENIED
    if isinstance(error, obstore.exceptions.InvalidPathError):
        return "the client for Google Storage cannot list a key with an empty, '.' or '..' part; rename that object"
    return "check the credentials, the endpoint and the region"
