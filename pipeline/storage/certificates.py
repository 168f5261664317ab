"""The certificates that the clients of all stores trust: the system's, and what the environment names."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pipeline.storage.uris import UriError

# Of AWS's tools, requests, curl and OpenSSL. A user who sets one of them means it, so all that they name are trusted.
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def ca_bundle(of_profile: str | None = None) -> str | None:
    """A file with the certificates that the environment names, in PEM form; None if it names none.

    of_profile: `ca_bundle` of the AWS profile. Raises UriError for a file that is none.
    """
    named = {os.environ[variable]: variable for variable in reversed(CA_VARIABLES) if os.environ.get(variable)}
    if of_profile and of_profile not in named:
        named[of_profile] = "ca_bundle of the AWS profile"
    return _joined(tuple(sorted(named.items()))) if named else None


@lru_cache(maxsize=4)
def tls_context(bundle: str | None) -> ssl.SSLContext:
    """What an HTTP client trusts: the system's certificates, those that Python's packages bring, and the bundle."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if bundle:
        context.load_verify_locations(bundle)
    return context


@lru_cache(maxsize=16)
def _joined(named: Sequence[tuple[str, str]]) -> str:
    contents = {path: _certificates(path, variable) for path, variable in named}
    if len(contents) == 1 and not Path(named[0][0]).is_dir():
        return named[0][0]
    file = tempfile.NamedTemporaryFile(prefix="facelake-certificates-", suffix=".pem")   # noqa: SIM115  (until the end)
    _kept_open.append(file)
    file.write(b"\n".join(contents.values()))
    file.flush()
    return file.name


_kept_open: list[object] = []      # they are deleted when the process ends


def _certificates(path: str, variable: str) -> bytes:
    """The certificates of a file, or of the files in a folder."""
    try:
        place = Path(path)
        files = sorted(each for each in place.iterdir() if each.is_file()) if place.is_dir() else [place]
        content = b"\n".join(found for each in files if b"BEGIN CERTIFICATE" in (found := each.read_bytes()))
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii", "replace"))
    except (OSError, ValueError) as error:       # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "no certificates in it"
        raise UriError(
            f"{variable} names {path} for the certificates, which cannot be used ({reason}): give a file in PEM form"
        ) from None
    return content
