"""Where an object lies and how to reach it: URIs, endpoints, and the clients of object stores.

Keys are raw in our URIs: `s3://bucket/50% off?.jpg` is the object of exactly that name, nothing is percent-encoded.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from obstore.store import GCSStore, HTTPStore, ObjectStore, S3Store

from pipeline.errors import UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

BUCKET_SCHEMES = ("s3", "gs")
REMOTE_SCHEMES = (*BUCKET_SCHEMES, "http", "https")

# Short enough that a dead endpoint is a row with a reason within a minute or so, not a stall.
RETRY: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30      # between two pieces of a body
READ_AHEAD_BYTES = 1 << 20
MAX_CONNECTIONS = 64     # of boto3; more threads than this open a connection for every request
REQUEST_TIMEOUT_S = 300  # a whole object: obstore's default of 30 s cuts off 100 MB on a slow line

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


def plain_etag(etag: str | None) -> str | None:
    """An etag without its quotes, as our tables have it; empty counts as unknown."""
    return (etag or "").strip('"') or None


@lru_cache(maxsize=256)
def open_bucket(bucket_uri: str, options: StoreOptions = FROM_ENVIRONMENT) -> ObjectStore:
    """The obstore client of `s3://bucket`, `gs://bucket` or an http(s) URI, one per process; safe to use from threads.

    S3 credentials come from boto3's chain (environment, profile, instance). Raises UriError when there are none.
    """
    scheme, name = uri_scheme(bucket_uri), bucket_uri.split("://", 1)[-1]
    if scheme == "s3":
        endpoint = s3_endpoint(options)
        config = {"endpoint": endpoint} if endpoint else {}
        if options.region:
            config["region"] = options.region
        if options.anonymous:
            return S3Store(name, config={**config, "skip_signature": True}, client_options=_client(endpoint),
                           retry_config=RETRY)
        return S3Store(name, config=config, credential_provider=_aws_credentials(), client_options=_client(endpoint),
                       retry_config=RETRY)
    if scheme == "gs":
        config = {"base_url": options.endpoint} if options.endpoint else {}
        if options.anonymous:
            config["skip_signature"] = True
        return GCSStore(name, config=config, client_options=_client(options.endpoint), retry_config=RETRY)
    if scheme in ("http", "https"):
        return HTTPStore(bucket_uri, client_options=_client(bucket_uri), retry_config=RETRY)
    raise UriError(f"not a bucket of {', '.join(REMOTE_SCHEMES)}: {bucket_uri!r}")


class RangeReader(io.RawIOBase):
    """An object as a seekable file; each read is one ranged GET."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    @classmethod
    def buffered(cls, read_range: Callable[[int, int], bytes], size: int) -> io.BufferedReader:
        """The same with read-ahead. read_range: bytes from a start to before an end. size: bytes in all."""
        return io.BufferedReader(cls(read_range, size), READ_AHEAD_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        content = self._read_range(self._position, end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


@lru_cache(maxsize=16)
def s3_client(options: StoreOptions = FROM_ENVIRONMENT) -> Any:
    """AWS's own S3 client (boto3), for listings: it takes keys that obstore refuses. Safe to use from threads."""
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    endpoint = s3_endpoint(options)
    config = Config(
        # "standard" backs off with jitter when a server throttles or breaks off. "adaptive" would slow all threads down
        # on top of that, by a rule that boto calls experimental; 16 threads stay far below S3's 5,500 lists a second.
        retries={"mode": "standard", "max_attempts": 6},
        max_pool_connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        # Other servers than AWS rarely have a DNS name for every bucket; obstore asks them by path as well.
        s3={"addressing_style": "path"} if endpoint else None,
        signature_version=UNSIGNED if options.anonymous else None,
    )
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=endpoint, region_name=options.region or _aws_region(), config=config
    )


def s3_endpoint(options: StoreOptions) -> str | None:
    """The endpoint in force for S3: the option, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL; None is AWS itself."""
    return options.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _parse_time(text: str) -> datetime:
    """A time in a response. botocore's own parser guesses the format, which is two thirds of a listing's time."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except ValueError:   # as headers have it: "Wed, 21 Oct 2015 07:28:00 GMT"
        return parse_timestamp(text)


def _aws_region() -> str:
    import boto3

    # boto3 reads AWS_DEFAULT_REGION and the profile, obstore AWS_REGION too: both clients shall agree.
    return os.environ.get("AWS_REGION") or boto3.Session().region_name or "us-east-1"


def _aws_credentials() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider()
    except ValueError:
        raise UriError(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run where a "
            "role is attached; for a public bucket add ?anonymous=true to the URI"
        ) from None
    provider.config["region"] = _aws_region()
    return provider


def _client(endpoint: str | None) -> ClientConfig:
    return {
        "allow_http": bool(endpoint) and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }
