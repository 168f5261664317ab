"""The names of images, and the places of files that a command writes beside its answer, on disk or in a bucket."""

from __future__ import annotations

from pathlib import Path

from jobs.options import ArgumentError
from pipeline.errors import UserError
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import absolute, is_local, local_path, local_uri, parse_input_uri

TEXT_FORMATS = (".csv", ".tsv", ".txt", ".json", ".jsonl")


def as_uri(name: str) -> str:
    """An argument as the column uri has it: a relative path is made absolute. Raises ArgumentError."""
    if is_local(name):
        path = local_path(name)
        return local_uri(path if path.startswith("/") else absolute(path))
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name!r} is not UTF-8, so no object has this name") from None
    return parse_input_uri(name)[0]


def check_table(place: str | None) -> None:
    """Raises ArgumentError if a Parquet file at this place would have the name of another format."""
    if place and parse_input_uri(place)[0].lower().endswith(TEXT_FORMATS):
        raise ArgumentError(f"--out writes Parquet, but {place} has the name of a text file; end it with .parquet")


def check_files(*places: str | None) -> None:
    """Raises ArgumentError if a file cannot be written there, or two would have one name. None is no file.

    For commands that work long before they write.
    """
    found = [(storage.root, name) for storage, name in map(place_of, filter(None, places))]
    for i, place in enumerate(found):
        if place in found[:i]:
            raise ArgumentError(f"two files would be written to {'/'.join(place)}; choose another name for one of them")


def place_of(place: str) -> tuple[Storage, str]:
    """The folder and the name of a file at a path or a bucket URI. Raises ArgumentError if none can be there."""
    uri, options = parse_input_uri(place)
    folder, _, name = (absolute(local_path(uri)) if is_local(uri) else uri).rpartition("/")
    if not name or place.endswith("/") or (is_local(uri) and Path(folder, name).is_dir()):
        raise ArgumentError(f"{place} names a folder; give the name of a file in it")
    try:
        return open_storage(folder or "/", options), name
    except UserError as error:
        raise ArgumentError(f"cannot write {place}: {error}; choose another file") from None
