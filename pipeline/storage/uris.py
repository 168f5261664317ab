"""Where a file or an object is: paths, URIs and the options in them.

Keys are raw in our URIs: `s3://bucket/50% off?.jpg` is the object of exactly that name. Nothing is percent-encoded,
except in `file://` URIs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from pipeline.errors import UserError

BUCKET_SCHEMES = ("s3", "gs")
REMOTE_SCHEMES = (*BUCKET_SCHEMES, "http", "https")

# What may follow "?" in INPUT and OUTPUT. Any other "?" is part of the key.
_QUERY_NAMES = {"endpoint_override", "endpoint", "scheme", "region", "anonymous"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class UriError(UserError):
    """A URI, or the credentials for it, that cannot be used."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Credentials are not here: they come from the environment, as for AWS's own tools."""

    endpoint: str | None = None   # "http://127.0.0.1:9000"; None: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the cloud
    region: str | None = None     # None: AWS_REGION, AWS_DEFAULT_REGION, the AWS profile
    anonymous: bool = False       # for a public bucket: send no credentials
    s3_endpoint: str | None = None   # of the driver's own configuration, for its actors: see `aws.for_actors`


FROM_ENVIRONMENT = StoreOptions()


_AZURE_SCHEMES = {"az", "adl", "azure", "abfs", "abfss", "wasb", "wasbs"}
_READABLE = "a local path, file://, s3://, gs://, http:// or https://"


def unsupported(uri: str, doing: str = "read", usable: str = _READABLE) -> str:
    """The message about a URI whose scheme is not supported. usable: what is, for what the user is doing."""
    scheme = uri_scheme(uri)
    if scheme in _AZURE_SCHEMES:
        usable = "a folder where the container is mounted (blobfuse2), or a copy in s3:// or gs://; Azure has no client"
    return f"cannot {doing} {scheme}:// ({uri!r}): use {usable}"


def uri_scheme(path: str) -> str | None:
    """The scheme of `scheme://…` in lower case; None for a plain path."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None


def is_remote(path: str) -> bool:
    """Whether the URI is reached over the network."""
    return uri_scheme(path) in REMOTE_SCHEMES


def is_http(path: str) -> bool:
    """Whether the URI is an http:// or https:// address."""
    return uri_scheme(path) in ("http", "https")


def is_local(path: str) -> bool:
    """Whether this is a plain path or a `file://` URI."""
    return uri_scheme(path) in (None, "file")


def local_path(path: str) -> str:
    """The path that a `file://` URI names; anything else unchanged.

    `file:///folder/name` and `file://localhost/folder/name` are `/folder/name`. Percent-encoded bytes are decoded.
    Raises UriError for another host and for a relative path.
    """
    if uri_scheme(path) != "file":
        return path
    host, slash, rest = path.split("://", 1)[1].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UriError(f"{path!r} does not name a file on this machine: write file:///folder/name, or the path alone")
    return os.fsdecode(unquote_to_bytes("/" + rest))


def local_uri(path: str) -> str:
    """The uri of an absolute path: the path itself, or `file://` with percent-encoded bytes if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:   # Python keeps the bytes of such a name as lone surrogates
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def absolute(path: str) -> str:
    """The absolute path; symbolic links are not resolved."""
    return os.path.abspath(path)   # noqa: PTH100  (Path.resolve follows links)


def parse_input_uri(uri: str) -> tuple[str, StoreOptions]:
    """The URI without its query, and the options in the query.

    `s3://bucket/key?endpoint_override=http://host:9000&region=eu-west-1&anonymous=true`. `scheme=http` belongs to an
    endpoint without a scheme, as in pyarrow. A query with any other name is part of the key, as are "?" and "=" in
    keys and globs. http(s) URIs and local paths are returned unchanged.
    Raises UriError for credentials in the URI, which would end up in logs, and for an empty one.
    """
    if not uri:
        raise UriError("a path is empty, perhaps because a variable is not set: name one, or . for this folder")
    if is_remote(uri) and "@" in uri.split("://", 1)[1].split("/", 1)[0]:
        raise UriError(
            "credentials in a URI end up in logs and process lists: remove them and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or an AWS profile, instead"
        )
    head, mark, query = uri.rpartition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=False))
    if uri_scheme(uri) not in BUCKET_SCHEMES or not mark or not pairs or not set(pairs) <= _QUERY_NAMES:
        return uri, StoreOptions()
    endpoint = pairs.get("endpoint_override") or pairs.get("endpoint")
    if endpoint and "://" not in endpoint:
        endpoint = f"{pairs.get('scheme') or 'https'}://{endpoint}"
    anonymous = pairs.get("anonymous", "false").lower() in ("1", "true", "yes")
    return head, StoreOptions(endpoint or None, pairs.get("region") or None, anonymous)


def split_uri(uri: str) -> tuple[str, str]:
    """The argument of `clients.open_bucket`, and the key: `s3://bucket/a b.jpg` → `("s3://bucket", "a b.jpg")`.

    Raises UriError for another scheme and for a URI without a bucket.
    """
    scheme = uri_scheme(uri)
    if scheme not in REMOTE_SCHEMES:
        raise UriError(f"{uri!r} is not a URI of {', '.join(REMOTE_SCHEMES)}")
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    if not bucket:
        raise UriError(f"no bucket or host in {uri!r}: write s3://bucket/key, gs://bucket/key or https://host/path")
    return f"{scheme}://{bucket}", key


def is_addressable(key: str) -> bool:
    """Whether obstore reaches the object of exactly this key.

    obstore refuses control characters and segments that are empty, "." or "..". It drops a "/" at either end, and then
    reads another object.
    """
    return all(part not in ("", ".", "..") for part in key.split("/")) and not re.search(r"[\x00-\x1f\x7f]", key)
