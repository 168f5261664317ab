"""S3 by the rules of AWS's own tools. botocore finds the configuration once; every client of S3 is made from it.

It knows the environment, the profiles in `~/.aws` with their `endpoint_url`, SSO, roles and `credential_process`,
partitions and addressing styles. botocore lists. obstore reads and writes, because a GET takes it 0.25 ms of a core and
botocore 2 ms (100 kB each, 16 threads); it gets address, region, certificates and credentials from here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import urllib3

from pipeline.storage.certificates import ca_bundle
from pipeline.storage.timeouts import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions, UriError

if TYPE_CHECKING:
    from obstore.store import S3Credential

MAX_CONNECTIONS = 64     # of botocore, kept open; more threads than this open a connection for every request
DEFAULT_REGION = "us-east-1"
NO_CREDENTIALS = (
    "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a "
    "machine with a role; for a public bucket add ?anonymous=true to the URI"
)

# obstore asks again when less than five minutes are left; botocore renews what expires in less than ten.
_CREDENTIALS_TTL = timedelta(minutes=6)


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """Where a bucket is.

    endpoint: with the bucket's name in its host if `virtual`, else without it. configured: the region that the
    configuration names, which need not be the bucket's.
    """

    endpoint: str
    virtual: bool
    region: str
    configured: str | None


@lru_cache(maxsize=16)
def aws_session(options: StoreOptions = FROM_ENVIRONMENT) -> Any:
    """botocore's session. Raises UriError for a configuration that cannot be read."""
    return _session(options)


def _session(options: StoreOptions) -> Any:
    import botocore.session

    session = botocore.session.get_session()
    with _explained():
        session.register_component("data_loader", _service_data(session.get_config_variable("data_path")))
        bundle = ca_file(session)
    if bundle:
        session.set_config_variable("ca_bundle", bundle)     # also of the clients that fetch credentials
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    if options.region:
        session.set_config_variable("region", options.region)
    elif region := os.environ.get("AWS_REGION"):             # of AWS's other tools; botocore does not read it
        session.set_config_variable("region", region)
    return session


@cache
def _service_data(data_path: str | None) -> Any:
    """What botocore knows of AWS's services, read once for all sessions: each would take 0.3 s."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def ca_file(session: Any) -> str | None:
    """The file of certificates that the AWS profile and the environment name; None if they name none."""
    return ca_bundle(session.get_config_variable("ca_bundle"))


@lru_cache(maxsize=16)
def s3_client(options: StoreOptions = FROM_ENVIRONMENT) -> Any:
    """AWS's own S3 client, for listings: it accepts keys that obstore refuses. Safe for threads.

    It follows a bucket to its region. Raises UriError for a configuration that cannot be used.
    """
    return _client(options, region=None, anonymous=options.anonymous)


@lru_cache(maxsize=256)
def bucket_address(name: str, options: StoreOptions = FROM_ENVIRONMENT) -> BucketAddress:
    """Where the bucket is; its region is asked for. Raises UriError, and botocore's errors if nothing answers."""
    configured = aws_session(options).get_config_variable("region")
    region = _ask_region(name, options) or configured or DEFAULT_REGION
    with _explained():
        endpoint = _address_of_request(_client(options, region=region, anonymous=True), name, "k").removesuffix("/k")
    by_path = endpoint.endswith(f"/{name}")
    return BucketAddress(endpoint.removesuffix(f"/{name}") if by_path else endpoint, not by_path, region, configured)


def for_actors(options: StoreOptions) -> StoreOptions:
    """The options with the endpoint and the region of this process, which an actor on another machine need not have.

    Credentials stay out: each machine has its own, or a role. Raises UriError.
    """
    configured = str(s3_client(options).meta.endpoint_url)
    by_itself = _session(options)
    by_itself.set_config_variable("ignore_configured_endpoint_urls", True)
    with _explained():
        client = by_itself.create_client("s3", region_name=_region(by_itself))
    endpoint = configured if configured != client.meta.endpoint_url and not options.endpoint else None
    return replace(options, region=aws_session(options).get_config_variable("region"), s3_endpoint=endpoint)


class AwsCredentials:
    """Credentials for obstore, from botocore's chain; botocore renews those that expire."""

    def __init__(self, options: StoreOptions) -> None:
        with _explained():
            self._credentials = aws_session(options).get_credentials()
        if self._credentials is None:
            raise UriError(NO_CREDENTIALS)
        self.config: dict[str, str] = {}       # obstore merges it into the store's

    def __call__(self) -> S3Credential:
        """The credentials now."""
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }


def _client(options: StoreOptions, *, region: str | None, anonymous: bool) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    session = aws_session(options)
    config = Config(
        # "standard" retries with backoff and jitter. "adaptive" would also slow all threads down, by a rule that boto
        # calls experimental; 16 threads stay far below S3's limit of 5,500 list requests a second.
        retries={"mode": "standard", "max_attempts": 6},
        max_pool_connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        signature_version=UNSIGNED if anonymous else None,
    )
    with _explained():
        return session.create_client(
            "s3", endpoint_url=options.endpoint or options.s3_endpoint, config=config,
            region_name=region or _region(session),
        )


def _region(session: Any) -> str:
    return session.get_config_variable("region") or DEFAULT_REGION


def _address_of_request(client: Any, bucket: str, key: str) -> str:
    """Where botocore would send the request for an object. Nothing is sent."""
    from botocore.awsrequest import AWSResponse

    addresses = []

    def answer(request: Any, **_: object) -> Any:
        addresses.append(request.url)
        return AWSResponse(request.url, 200, {}, urllib3.HTTPResponse(io.BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3.HeadObject", answer)
    client.head_object(Bucket=bucket, Key=key)
    return str(addresses[0])


def _ask_region(name: str, options: StoreOptions) -> str | None:
    """The bucket's region, as the store says it; None if it does not say. A refusal says it too."""
    from botocore.exceptions import ClientError, NoCredentialsError

    try:
        answer = s3_client(options).head_bucket(Bucket=name)
    except ClientError as error:
        answer = error.response
    except NoCredentialsError:
        raise UriError(NO_CREDENTIALS) from None
    headers: dict[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or None


@contextmanager
def _explained() -> Iterator[None]:
    """Turn botocore's errors of configuration into UriErrors."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, ValueError) as error:       # ValueError: an endpoint that is no URL
        raise UriError(
            f"the AWS configuration cannot be used: {' '.join(str(error).split())}. Check AWS_PROFILE, ~/.aws/config, "
            "~/.aws/credentials and the endpoint"
        ) from None


def _parse_time(text: str) -> datetime:
    """A time in a response. botocore's own parser guesses the format and takes two thirds of a listing's time."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text)
    except ValueError:   # the form of headers: "Wed, 21 Oct 2015 07:28:00 GMT"
        time: datetime = parse_timestamp(text)
        return time
