"""Reads an image of the first page of a listing, before the rest is listed.

A listing can go through where reading does not: other permissions, another address, a certificate. What every image
would meet is refused at once. One image that is missing or broken refuses nothing: it gets its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pyarrow as pa

from pipeline.batch import Fetched, FetchFailure, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.input.fetch import Fetch
from pipeline.input.names import InputError
from pipeline.storage.uris import is_http, is_remote

SAMPLES = 5                # images that must all fail alike before that counts as a fault of the environment

_DENIED = re.compile(r"\b403\b|AccessDenied|Forbidden|access denied", re.IGNORECASE)
_NO_SERVER = re.compile(r"does not resolve|connection refused|no connection|certificate|TLS|proxy|unreachable")


class FirstRead:
    """Hands tables of a listing on to `add`; reads an image of the first one before. Raises InputError."""

    def __init__(self, add: Callable[[pa.Table], None], fetch: Fetch) -> None:
        self._add = add
        self._fetch = fetch
        self._done = False

    def __call__(self, table: pa.Table) -> None:
        if len(table) and not self._done:
            self._done = True
            self._read(table)
        self._add(table)

    def _read(self, table: pa.Table) -> None:
        step = max(1, len(table) // SAMPLES)
        rows = [TodoRow(**table.slice(i, 1).to_pylist()[0]) for i in range(0, len(table), step)][:SAMPLES]
        reason = ""
        for row in rows:
            try:
                [result] = self._fetch([row])
            except EnvironmentFault as fault:
                raise InputError(f"the images of INPUT cannot be read: {fault}") from fault
            if isinstance(result, Fetched) or not (reason := _fault_of_all(row, result)):
                return
        raise InputError(
            f"the images of INPUT cannot be read: {len(rows)} of {len(rows)} tried failed alike, such as {rows[0].uri} "
            f"({reason}); check the address, the credentials and their permissions"
        )


def _fault_of_all(row: TodoRow, failure: FetchFailure) -> str:
    """The reason, if it may be a fault that every image meets; else ""."""
    place = row.container or row.uri
    suspicious = _NO_SERVER if is_http(place) else _DENIED
    return failure.error if is_remote(place) and suspicious.search(failure.error) else ""
