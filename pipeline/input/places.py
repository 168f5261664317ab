"""Where INPUT and OUTPUT are: what can be checked of them before anything is listed or written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from pipeline.input.buckets import input_errors
from pipeline.input.folders import identity
from pipeline.input.listing import list_inputs
from pipeline.input.names import InputError
from pipeline.input.rules import Rules
from pipeline.storage.aws import bucket_address
from pipeline.storage.uris import (
    REMOTE_SCHEMES,
    StoreOptions,
    absolute,
    is_local,
    local_path,
    split_uri,
    unsupported,
    uri_scheme,
)


def check_places(inputs: Sequence[str], rules: Rules) -> None:
    """Check what costs no listing.

    Raises InputError for an INPUT that is the output, that does not exist on disk, or whose scheme is unknown, and
    UriError for one without a bucket.
    """
    for uri in inputs:
        if not is_local(uri):
            if uri_scheme(uri) not in REMOTE_SCHEMES:
                raise InputError(unsupported(uri))
            split_uri(uri)
            if uri.rstrip("/") == rules.output:
                raise InputError(f"INPUT and OUTPUT are the same place, {rules.output}: choose another OUTPUT")
            continue
        path = absolute(local_path(uri))
        if path == rules.output or (identity(path) is not None and identity(path) == identity(rules.output)):
            raise InputError(f"INPUT and OUTPUT are the same folder, {path}: choose another OUTPUT")
        if not os.path.lexists(path) and not set(path) & set("*?["):
            list_inputs([uri], lambda table: None, rules)


def region_lines(options_of: Mapping[str, StoreOptions]) -> Iterator[str]:
    """A line for each bucket that is in another region than the configured one, which is followed there.

    options_of: from INPUTs and OUTPUT to their options. Raises InputError for a bucket that cannot be reached.
    """
    places = {split_uri(uri)[0]: options for uri, options in options_of.items() if uri_scheme(uri) == "s3"}
    for bucket_uri, options in places.items():
        with input_errors(bucket_uri):
            address = bucket_address(bucket_uri.removeprefix("s3://"), options)
        if address.region != (address.configured or address.region):
            yield f"{bucket_uri} is in the region {address.region}; {address.configured} is configured"
