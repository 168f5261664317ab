"""The clients of object stores, with their credentials, timeouts and retries."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from obstore.store import GCSStore, HTTPStore, ObjectStore, S3Store

from pipeline.storage.uris import FROM_ENVIRONMENT, REMOTE_SCHEMES, StoreOptions, UriError, is_http, uri_scheme

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSConfig, RetryConfig, S3Config

# With these a dead endpoint gives a failed row after about a minute; it does not stall the run.
RETRY: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30      # between two pieces of a body
REQUEST_TIMEOUT_S = 300  # for a whole object: obstore's default of 30 s cuts off 100 MB on a slow line
MAX_CONNECTIONS = 64     # of boto3, kept open; more threads than this open a connection for every request


def plain_etag(etag: str | None) -> str | None:
    """An etag without its quotes, as in our tables; None for an empty one."""
    return (etag or "").strip('"') or None


@lru_cache(maxsize=256)
def open_bucket(bucket_uri: str, options: StoreOptions = FROM_ENVIRONMENT) -> ObjectStore:
    """The obstore client of `s3://bucket`, `gs://bucket` or an http(s) URI. One per process, safe for threads.

    S3 credentials come from boto3's chain (environment, profile, instance). Raises UriError if there are none.
    """
    scheme, name = uri_scheme(bucket_uri), bucket_uri.split("://", 1)[-1]
    if scheme == "s3":
        return _s3_store(name, options)
    if scheme == "gs":
        config: GCSConfig = {"base_url": options.endpoint} if options.endpoint else {}
        if options.anonymous:
            config["skip_signature"] = True
        return GCSStore(name, config=config, client_options=_client_options(options.endpoint), retry_config=RETRY)
    if is_http(bucket_uri):
        return HTTPStore(bucket_uri, client_options=_client_options(bucket_uri), retry_config=RETRY)
    raise UriError(f"{bucket_uri!r} is not a bucket of {', '.join(REMOTE_SCHEMES)}")


def _s3_store(name: str, options: StoreOptions) -> S3Store:
    endpoint = s3_endpoint(options)
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    if options.region:
        config["region"] = options.region
    if options.anonymous:
        config["skip_signature"] = True
    return S3Store(
        name, config=config, client_options=_client_options(endpoint), retry_config=RETRY,
        credential_provider=None if options.anonymous else _aws_credentials(),
    )


def _client_options(endpoint: str | None) -> ClientConfig:
    return {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }


@lru_cache(maxsize=16)
def s3_client(options: StoreOptions = FROM_ENVIRONMENT) -> Any:
    """AWS's own S3 client (boto3), for listings: it accepts keys that obstore refuses. Safe for threads."""
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    endpoint = s3_endpoint(options)
    config = Config(
        # "standard" retries with backoff and jitter. "adaptive" would also slow all threads down, by a rule that boto
        # calls experimental; 16 threads stay far below S3's limit of 5,500 list requests a second.
        retries={"mode": "standard", "max_attempts": 6},
        max_pool_connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        # Few servers other than AWS have a DNS name for each bucket. obstore addresses them by path too.
        s3={"addressing_style": "path"} if endpoint else None,
        signature_version=UNSIGNED if options.anonymous else None,
    )
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=endpoint, region_name=options.region or _aws_region(), config=config
    )


def s3_endpoint(options: StoreOptions) -> str | None:
    """The endpoint for S3: the option, else AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL; None is AWS itself."""
    return options.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _parse_time(text: str) -> datetime:
    """A time in a response. botocore's own parser guesses the format and takes two thirds of a listing's time."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except ValueError:   # the form of headers: "Wed, 21 Oct 2015 07:28:00 GMT"
        time: datetime = parse_timestamp(text)
        return time


def _aws_region() -> str:
    import boto3

    # boto3 reads AWS_DEFAULT_REGION and the profile; obstore reads AWS_REGION too. Both clients must agree.
    return os.environ.get("AWS_REGION") or boto3.Session().region_name or "us-east-1"


def _aws_credentials() -> Any:
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider()
    except ValueError:
        raise UriError(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a "
            "machine with a role; for a public bucket add ?anonymous=true to the URI"
        ) from None
    provider.config["region"] = _aws_region()
    return provider
