"""The names of images, and the places of files that a command writes beside its answer, on disk or in a bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.options import ArgumentError
from jobs.pages.marks import is_page
from pipeline.errors import UserError
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import absolute, is_local, local_path, local_uri, parse_input_uri

_BEGINNING = 1 << 20      # bytes; the title of a page is among them
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


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a command writes into a file: in words, and how a file of this kind is known by its beginning."""

    words: str
    is_one: Callable[[bytes], bool]


PAGE = FileKind("a page of facelake", is_page)
TABLE = FileKind("a Parquet file", lambda content: content.startswith(b"PAR1"))
JSON_FILE = FileKind("a JSON file", lambda content: content.startswith(b"{"))


def check_files(*files: tuple[str | None, FileKind]) -> None:
    """Raises ArgumentError if a file cannot be written there, has another one's name, or would replace something else.

    For commands that work long before they write. Each file is a place, None for no file, and what will be written.
    """
    found = set[tuple[str, str]]()
    for place, kind in files:
        if place is None:
            continue
        if kind is TABLE and parse_input_uri(place)[0].lower().endswith(TEXT_FORMATS):
            raise ArgumentError(f"--out writes Parquet, but {place} has the name of a text file; end it with .parquet")
        storage, name = place_of(place)
        if (storage.root, name) in found:
            raise ArgumentError(f"two files would be written to {place}; choose another name for one of them")
        found.add((storage.root, name))
        if not _may_replace(storage, name, kind):
            raise ArgumentError(f"{place} exists, and is not {kind.words}: choose another file, or delete it first")


def _may_replace(storage: Storage, name: str, kind: FileKind) -> bool:
    """Whether nothing is there, an empty file, or one of this kind; also where this user cannot read it."""
    local = Path(storage.root, name)
    if is_local(storage.root) and local.exists() and not local.is_file():
        return False
    try:
        with storage.open(name) as file:
            beginning = file.read(_BEGINNING)
    except OSError:
        return True
    return not beginning or kind.is_one(beginning)


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
