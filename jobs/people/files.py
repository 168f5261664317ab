"""Files that a command writes beside its answer, on disk or in a bucket."""

from __future__ import annotations

import posixpath

from jobs.options import ArgumentError
from pipeline.errors import UserError
from pipeline.storage import open_storage
from pipeline.storage.uris import absolute, is_local, local_path, parse_input_uri


def write_file(place: str, content: bytes) -> str:
    """Write a file at a path or a bucket URI, whole or not at all. Returns where. Raises ArgumentError."""
    uri, options = parse_input_uri(place)
    folder, _, name = (absolute(local_path(uri)) if is_local(uri) else uri).rpartition("/")
    if not name or place.endswith("/"):
        raise ArgumentError(f"{place} names a folder; give the name of a file in it")
    try:
        storage = open_storage(folder or "/", options)
        storage.write(name, content)
    except (OSError, UserError) as error:
        raise ArgumentError(f"cannot write {place}: {error}; choose another file") from None
    return posixpath.join(storage.root, name)
