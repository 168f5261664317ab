"""What an error of a store means: a fault of the environment, which every object meets, or of one object alone."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from pipeline.errors import EnvironmentFault
from pipeline.storage.uris import UriError

ACCESS_DENIED = "access denied; check the credentials, or add ?anonymous=true for a public bucket"


@dataclass(frozen=True, slots=True)
class _Fault:
    """A fault by its code in S3's answers, or by the words of the clients for it, and what to do."""

    pattern: str
    next_step: str


_EVERY_OBJECT = (
    _Fault(r"ExpiredToken\w*|RequestExpired|TokenRefreshRequired|Token has expired|session.{0,60}expired|"
           r"\w*SSOToken\w*", "the credentials have expired; log in again (`aws sso login`), or renew them"),
    _Fault(r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|InvalidSecurity|InvalidClientTokenId|"
           r"UnrecognizedClientException|status code: 401|\bUnauthorized\b",
           "the store does not know these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
           "AWS_PROFILE, and the endpoint"),
    _Fault(r"Unable to locate credentials|NoCredentials\w*|PartialCredentials\w*|no AWS credentials|"
           r"credential provider|[Rr]etrieving credentials|retrieving metadata|credential_process|AssumeRole",
           "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs ?anonymous=true"),
    _Fault(r"NoSuchBucket|specified bucket does not exist|bucket is not found",
           "there is no such bucket at this endpoint; check its name and AWS_ENDPOINT_URL"),
    _Fault(r"Received redirect without LOCATION|PermanentRedirect|AuthorizationHeaderMalformed|"
           r"IllegalLocationConstraint\w*|AuthorizationQueryParameters\w*",
           "the bucket is in another region; set AWS_REGION, or add ?region=NAME"),
    _Fault(r"RequestTimeTooSkewed", "the clock of this machine is wrong; set it"),
    _Fault(r"AllAccessDisabled|AccountProblem|NotSignedUp", "the account of the bucket is closed to requests"),
    _Fault(r"certificate|CERTIFICATE_VERIFY_FAILED|UnknownIssuer|SSL validation",
           "its certificate is not trusted; set AWS_CA_BUNDLE (or SSL_CERT_FILE) to the PEM file of its authority"),
    _Fault(r"dns error|failed to lookup address|Name or service not known|NameResolutionError|getaddrinfo|"
           r"Temporary failure in name resolution|nodename nor servname",
           "its name does not resolve; check the endpoint, the region and the network"),
    _Fault(r"Connection refused|Network is unreachable|No route to host|Could not connect to the endpoint|"
           r"Failed to connect to proxy",
           "nothing answers there; check the endpoint and the network"),
)

# A mounted file system that is gone.
_MOUNT_GONE = {errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ESHUTDOWN}


def bucket_fault(error: Exception) -> str | None:
    """What to do about an error that every object of the bucket meets; None for the error of one object."""
    if isinstance(error, UriError):
        return str(error)
    words = _words(error)
    return next((fault.next_step for fault in _EVERY_OBJECT if re.search(fault.pattern, words)), None)


def is_access_denied(error: Exception) -> bool:
    """Whether the store refuses these credentials, for this object at least."""
    return isinstance(error, PermissionError) or bool(
        re.search(r"\bAccessDenied\b|\bForbidden\b|status code: 403|\b403\b", _words(error))
    )


def is_not_found(error: Exception) -> bool:
    """Whether S3 has no such object."""
    return bool(re.match(r"(NoSuchKey|404) status code: 404", _words(error)))


def environment_fault(error: Exception, place: str) -> EnvironmentFault | None:
    """The fault that an error of reading stands for, if it is not one of this file alone.

    place: where it was read, for the message: the bucket, or "" for a local file.
    """
    if place and (next_step := bucket_fault(error)):
        detail = "" if isinstance(error, UriError) else f" ({one_line(error)})"
        return EnvironmentFault(next_step if place in next_step else f"{place}: {next_step}{detail}")
    if isinstance(error, OSError) and error.errno in _MOUNT_GONE:
        return EnvironmentFault(f"{error}: mount the file system again")
    return EnvironmentFault.of(error)


def one_line(error: Exception) -> str:
    """The beginning of an error's message, without the queries and the debug text of clients."""
    if "status code: " in (words := _words(error)):
        code, _, status = words.rpartition("status code: ")
        return f"{status.strip()}: {code.strip()}".removesuffix(": ")
    text = " ".join(str(error).partition("\n\nDebug source")[0].split()) or type(error).__name__
    return re.sub(r"(\w+://)(?:[^\s/@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", text)[:300]


def _words(error: Exception) -> str:
    """The words of an error that name its kind: without addresses and names of objects, which may hold any word."""
    text = str(error)
    response = getattr(error, "response", None)
    if isinstance(response, dict):                     # of boto3
        answered = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        return f"{response.get('Error', {}).get('Code', '')} status code: {answered}"
    if status := re.search(r"status code: \d{3}[^:<]*", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"{code[1] if code else ''} {status[0]}".strip()
    text = re.sub(r"Object at location .* not found", "", text)
    return f"{type(error).__name__} " + re.sub(r"\w+://[^\s\"')]*|\bpath: \"[^\"]*\"", "", text)
