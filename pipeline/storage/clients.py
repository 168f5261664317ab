"""The clients that read and write buckets, with their credentials, timeouts and retries."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError
from obstore.store import GCSStore, ObjectStore, S3Store

from pipeline.storage.aws import AwsCredentials, aws_session, bucket_address, ca_file, s3_client
from pipeline.storage.certificates import ca_bundle
from pipeline.storage.faults import bucket_fault, one_line
from pipeline.storage.timeouts import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S, RETRIES, RETRY_S
from pipeline.storage.uris import BUCKET_SCHEMES, FROM_ENVIRONMENT, StoreOptions, UriError, uri_scheme

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSConfig, RetryConfig, S3Config

RETRY: RetryConfig = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}
FAILURE_KEPT_S = 30


def plain_etag(etag: str | None) -> str | None:
    """An etag without its quotes, as in our tables; None for an empty one."""
    return (etag or "").strip('"') or None


class _Opened:
    """What was opened, by its place. A failure is kept too: else each of many threads would wait for it in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[str, StoreOptions], ObjectStore] = {}
        self._failed: dict[tuple[str, StoreOptions], tuple[float, UriError]] = {}

    def get(self, bucket_uri: str, options: StoreOptions) -> ObjectStore:
        place = bucket_uri, options
        with self._lock:
            if place in self._found:
                return self._found[place]
            since, failure = self._failed.get(place, (-math.inf, None))
            if failure and time.monotonic() < since + FAILURE_KEPT_S:
                raise failure
            try:
                self._found[place] = _open_bucket(bucket_uri, options)
            except (UriError, BotoCoreError) as error:
                failure = error if isinstance(error, UriError) else _unreachable(bucket_uri, error)
                self._failed[place] = time.monotonic(), failure
                raise failure from None
            return self._found[place]

    def forget(self) -> None:
        with self._lock:
            self._found.clear()
            self._failed.clear()


def _unreachable(bucket_uri: str, error: Exception) -> UriError:
    next_step = bucket_fault(error) or "check the endpoint and the network"
    return UriError(f"cannot reach {bucket_uri}: {next_step} ({one_line(error)})")


_opened = _Opened()


def forget_clients() -> None:
    """Open all clients anew: the environment has changed."""
    _opened.forget()
    for cache in (aws_session, s3_client, bucket_address):
        cache.cache_clear()


def open_bucket(bucket_uri: str, options: StoreOptions = FROM_ENVIRONMENT) -> ObjectStore:
    """The obstore client of `s3://bucket` or `gs://bucket`. One per process, safe for threads.

    Raises UriError for a configuration that cannot be used, and if S3 does not answer.
    """
    return _opened.get(bucket_uri, options)


def _open_bucket(bucket_uri: str, options: StoreOptions) -> ObjectStore:
    scheme, name = uri_scheme(bucket_uri), bucket_uri.split("://", 1)[-1]
    if scheme == "s3":
        return _s3_store(name, options)
    if scheme == "gs":
        config: GCSConfig = {"base_url": options.endpoint} if options.endpoint else {}
        if options.anonymous:
            config["skip_signature"] = True
        client_options = _client_options(options.endpoint, ca_bundle())
        return GCSStore(name, config=config, client_options=client_options, retry_config=RETRY)
    raise UriError(f"{bucket_uri!r} is not a bucket of {', '.join(BUCKET_SCHEMES)}")


def _s3_store(name: str, options: StoreOptions) -> S3Store:
    address = bucket_address(name, options)
    config: S3Config = {
        "endpoint": address.endpoint, "virtual_hosted_style_request": address.virtual, "region": address.region,
    }
    if options.anonymous:
        config["skip_signature"] = True
    return S3Store(
        name, config=config, retry_config=RETRY,
        client_options=_client_options(address.endpoint, ca_file(aws_session(options))),
        credential_provider=None if options.anonymous else AwsCredentials(options),
    )


def _client_options(endpoint: str | None, bundle: str | None) -> ClientConfig:
    config: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }
    if bundle:
        config["root_certificate"] = Path(bundle).read_bytes()
    return config
