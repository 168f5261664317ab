from __future__ import annotations

import errno
import os

import obstore
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSOTokenLoadError

from pipeline.storage.faults import bucket_fault, environment_fault, is_access_denied, is_not_found, one_line
from pipeline.storage.uris import UriError


def answered(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


def from_obstore(status: str, code: str = "", key: str = "a.jpg") -> Exception:
    return obstore.exceptions.GenericError(
        f"Generic S3 error: Error performing GET http://host/bucket/{key} in 2ms - Server returned non-2xx "
        f"status code: {status}: <Error><Code>{code}</Code><Key>{key}</Key></Error>\n\nDebug source:\n{key}"
    )


def from_network(cause: str) -> Exception:
    url = "http://host/bucket/certificate.jpg"
    return obstore.exceptions.GenericError(
        f"Generic S3 error: Error performing GET {url} in 9s, after 6 retries - HTTP error: error sending request\n\n"
        f'Debug source:\nurl: "{url}", path: "/certificate.jpg" {cause}'
    )


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (answered("NoSuchKey", 404), None),
        (answered("AccessDenied", 403), None),
        (answered("SlowDown", 503), None),
        (from_obstore("404 Not Found", "NoSuchKey", "ExpiredToken/NoSuchBucket/certificate.jpg"), None),
        (from_obstore("403 Forbidden", "InvalidObjectState"), None),
        (from_network("operation timed out"), None),
        (FileNotFoundError("Object at location certificate.jpg not found: NoSuchKey"), None),
        (answered("ExpiredToken", 400), "log in again"),
        (from_obstore("400 Bad Request", "ExpiredToken"), "log in again"),
        (SSOTokenLoadError(error_msg="expired"), "log in again"),
        (from_obstore("403 Forbidden", "InvalidAccessKeyId"), "check AWS_ACCESS_KEY_ID"),
        (from_obstore("403 Forbidden", "SignatureDoesNotMatch"), "check AWS_ACCESS_KEY_ID"),
        (from_obstore("403 Forbidden", "RequestTimeTooSkewed"), "the clock of this machine is wrong"),
        (from_obstore("404 Not Found", "NoSuchBucket"), "no such bucket"),
        (from_obstore("400 Bad Request", "AuthorizationHeaderMalformed"), "set AWS_REGION"),
        (NoCredentialsError(), "set AWS_ACCESS_KEY_ID"),
        (EndpointConnectionError(endpoint_url="http://host"), "nothing answers there"),
        (from_network('ConnectError("dns error", failed to lookup address information)'), "does not resolve"),
        (from_network('Os { code: 111, message: "Connection refused" }'), "nothing answers there"),
        (from_network("invalid peer certificate: UnknownIssuer"), "set AWS_CA_BUNDLE"),
        (UriError("no AWS credentials found"), "no AWS credentials found"),
    ],
)
def test_what_every_object_meets_is_told_from_the_fault_of_one(error, remedy):
    found = bucket_fault(error)
    assert found is None if remedy is None else remedy in (found or "")
    fault = environment_fault(error, "s3://b")
    assert (fault is None) == (remedy is None)
    assert fault is None or str(fault).startswith("s3://b: ")


@pytest.mark.parametrize(
    ("number", "place", "is_fault"),
    [
        (errno.ENOENT, "", False), (errno.EACCES, "", False), (errno.EIO, "", False),
        (errno.ENOSPC, "", True), (errno.EMFILE, "s3://b", True), (errno.ENOTCONN, "", True),
    ],
)
def test_errors_of_the_system(number, place, is_fault):
    assert (environment_fault(OSError(number, os.strerror(number), "/a"), place) is not None) == is_fault


def test_answers_by_name():
    assert is_not_found(answered("NoSuchKey", 404)) and is_not_found(answered("404", 404))
    assert not is_not_found(answered("NoSuchBucket", 404))
    assert is_access_denied(answered("AccessDenied", 403)) and is_access_denied(answered("403", 403))
    assert is_access_denied(from_obstore("403 Forbidden", "AccessDenied"))
    assert not is_access_denied(from_obstore("404 Not Found", "NoSuchKey", "403 Forbidden.jpg"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(), "ValueError"),
        (from_obstore("403 Forbidden", "AccessDenied"), "403 Forbidden: AccessDenied"),
        (answered("AccessDenied", 403), "403: AccessDenied"),
        (OSError("GET http://user:pw@host/a?X-Signature=s\nfailed"), "GET http://host/a failed"),
    ],
)
def test_one_line_has_no_secrets(error, line):
    assert one_line(error) == line
