"""Where a file or an object lies: URIs, their schemes and their options.

Keys are raw in our URIs: `s3://bucket/50% off?.jpg` is the object of exactly that name, nothing is percent-encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from pipeline.errors import UserError

BUCKET_SCHEMES = ("s3", "gs")
REMOTE_SCHEMES = (*BUCKET_SCHEMES, "http", "https")

# What may stand behind "?" in INPUT and OUTPUT. Anything else there is part of the key: keys may hold "?" and "=".
_QUERY_NAMES = {"endpoint_override", "endpoint", "scheme", "region", "anonymous"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Credentials are never in here: they come from the environment, as AWS's own tools do it."""

    endpoint: str | None = None   # "http://127.0.0.1:9000"; else AWS_ENDPOINT_URL(_S3), else the cloud's own
    region: str | None = None     # else AWS_REGION, AWS_DEFAULT_REGION or the AWS profile
    anonymous: bool = False       # a public bucket: send no credentials


FROM_ENVIRONMENT = StoreOptions()


class UriError(UserError):
    """A URI, or the credentials for it, with which nothing can be reached; the message says what to do."""


def uri_scheme(path: str) -> str | None:
    """The scheme of `scheme://…` in small letters; None for a plain path."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None


def is_remote(path: str) -> bool:
    """Whether the path is a URI that is reached over the network, not by the file system."""
    return uri_scheme(path) in REMOTE_SCHEMES


def parse_input_uri(uri: str) -> tuple[str, StoreOptions]:
    """The URI without its query parameters, and what they said.

    `s3://bucket/key?endpoint_override=http://host:9000&region=eu-west-1&anonymous=true`, `scheme=http` for an endpoint
    without one, as pyarrow has it. Only a query of exactly such names is taken off: "?" may be in a key or a glob.
    http(s) URIs and local paths stay whole. Raises UriError for credentials in the URI, since it ends up in logs.
    """
    if is_remote(uri) and "@" in uri.split("://", 1)[1].split("/", 1)[0]:
        raise UriError(
            "credentials in a URI end up in logs and process lists: leave them out and set AWS_ACCESS_KEY_ID and "
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
    """What `open_bucket` takes, and the key in it: `s3://bucket/a b.jpg` → `("s3://bucket", "a b.jpg")`.

    An http(s) URI with a query, or with segments that a client would change, is its own store and has the key "".
    Raises UriError for another scheme or without a bucket.
    """
    scheme = uri_scheme(uri)
    if scheme not in REMOTE_SCHEMES:
        raise UriError(f"not a URI of {', '.join(REMOTE_SCHEMES)}: {uri!r}")
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    if not bucket:
        raise UriError(f"no bucket or host in {uri!r}")
    if scheme in ("http", "https"):
        path = unquote(key)
        if "?" in uri or "#" in uri or not is_addressable(path):
            return uri, ""
        return f"{scheme}://{bucket}", path
    return f"{scheme}://{bucket}", key


def is_addressable(key: str) -> bool:
    """Whether obstore reaches the object of exactly this key.

    It refuses segments that are empty, "." or ".." and control characters, and, worse, drops a "/" at either end
    and so reads another object.
    """
    return all(part not in ("", ".", "..") for part in key.split("/")) and not re.search(r"[\x00-\x1f\x7f]", key)
