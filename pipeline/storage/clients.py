"""The clients that reach object stores: their credentials, timeouts and retries."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from obstore.store import GCSStore, HTTPStore, ObjectStore, S3Store

from pipeline.storage.uris import FROM_ENVIRONMENT, REMOTE_SCHEMES, StoreOptions, UriError, uri_scheme

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Short enough that a dead endpoint is a row with a reason within a minute or so, not a stall.
RETRY: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30      # between two pieces of a body
MAX_CONNECTIONS = 64     # of boto3; more threads than this open a connection for every request
REQUEST_TIMEOUT_S = 300  # a whole object: obstore's default of 30 s cuts off 100 MB on a slow line


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
