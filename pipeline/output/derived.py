"""What is made of an output: indexes, tables of groups, pages. Each is on record, in `OUTPUT/_derived/<name>.json`.

They show faces and names, so jobs.erase has to find them, wherever they are. A record is written before the files that
it names and deleted after them: after a crash it may name files that are not there, but no file is without a record.
Whoever makes something holds the lease of the output from before its rows are read until the last file is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from pipeline.errors import OutputError
from pipeline.storage import Storage, open_storage
from pipeline.storage.base import join
from pipeline.storage.uris import StoreOptions, absolute, is_local, local_path, parse_input_uri

FOLDER = "_derived"
DELETE, DROP_ROWS = "delete", "drop_rows"
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError)                  # what reading a damaged record raises
_OWN = re.compile(r"(faces|images|_[^/]*)/.*|_[^/]*|(output|run)\.json|")     # paths that the output itself uses


@dataclass(frozen=True, slots=True)
class Derived:
    """Files that a command makes of an output: one, or several in a folder of their own.

    kind: "index", "groups", "page" or the like, for names and messages. place: the file, or the folder with "/" at its
    end; while `in_output` a path in the output, else an absolute path or a URI, opened with the options `store`.
    command: makes it again; it names no images, since the record may outlive them. on_erase: DELETE the files, or
    DROP_ROWS of erased images from them: Parquet files with a column `uri`. rows_only: it shows nothing but rows of
    the output, so it can stay when the erased images have none. fingerprint, models: of the output. files: by their
    names in the folder the sha256 of their content; two while one is written over another. host: where it was made.
    """

    kind: str
    place: str
    command: str
    on_erase: str = DELETE
    rows_only: bool = True
    in_output: bool = False
    store: StoreOptions = field(default_factory=StoreOptions)
    fingerprint: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    host: str = ""
    made: str = ""

    def __post_init__(self) -> None:
        if self.in_output and (_OWN.fullmatch(self.place) or ".." in self.place.split("/") or self.place[0] == "/"):
            raise ValueError(f"{self.place!r} is not a place for what is made of an output")

    @property
    def folder(self) -> str:
        """Where its files are."""
        return self.place.rpartition("/")[0] or ("" if self.in_output else "/")

    @property
    def record(self) -> str:
        """The path of its record in the output."""
        identity = json.dumps([self.in_output, self.place, asdict(self.store)])
        return f"{FOLDER}/{self.kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"

    def to_json(self) -> bytes:
        """The content of the record."""
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(content: bytes) -> Derived:
        """The thing of a record. Raises ValueError, TypeError, KeyError or AttributeError for a damaged one."""
        found = json.loads(content)
        made = Derived(**{**found, "store": StoreOptions(**found["store"])})
        for name, digests in made.files.items():
            plain = "/" not in name and name not in ("", ".", "..")
            if not plain or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
                raise ValueError(f"{name!r} is not a file of {made.place}")
        if made.on_erase not in (DELETE, DROP_ROWS):
            raise ValueError(f"{made.on_erase!r} is not what an erasure can do")
        return made


@dataclass(frozen=True, slots=True)
class Source:
    """An output that something is made of, its lease held. check_lease: raises LeaseLost if another run has it.

    fingerprint, models: of output.json; models by role, as names.
    """

    storage: Storage
    check_lease: Callable[[], None]
    fingerprint: str
    models: Mapping[str, str]


class Maker:
    """Writes files that are made of outputs, each after its record. Without outputs it only writes."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def write(self, thing: Derived, files: Mapping[str, bytes]) -> None:
        """Write files of a thing, by their names, each whole or not at all. Other files of the thing stay.

        thing.place is as a user writes it. Raises OutputError for a place that an output itself uses, and OSError.
        """
        located = self._located(thing)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        for source, here in located:
            source.check_lease()
            known = known_files(source.storage, here)
            write_record(source.storage, here, known | {name: [*known.get(name, ()), digests[name]] for name in files})
        storage, folder = self._target(thing, located)
        for name, content in files.items():
            storage.write(join(folder, name), content)
        written = {name: [digest] for name, digest in digests.items()}
        for source, here in located:
            write_record(source.storage, here, known_files(source.storage, here) | written)

    def check(self, thing: Derived) -> None:
        """Raises OutputError now if `write` would, for a command that works long before it writes."""
        self._located(thing)

    def where(self, thing: Derived) -> tuple[Storage, str]:
        """A storage, and the folder in it where the files of a thing are."""
        return self._target(thing, self._located(thing))

    def delete(self, thing: Derived, names: Sequence[str]) -> None:
        """Delete files of a thing that it needs no more."""
        located = self._located(thing)
        storage, folder = self._target(thing, located)
        for source, _ in located:
            source.check_lease()
        storage.delete(*(join(folder, name) for name in names))
        for source, here in located:
            known = known_files(source.storage, here)
            write_record(source.storage, here, {name: known[name] for name in known if name not in names})

    def _located(self, thing: Derived) -> list[tuple[Source, Derived]]:
        return [(source, locate(thing, source)) for source in self._sources]

    def _target(self, thing: Derived, located: Sequence[tuple[Source, Derived]]) -> tuple[Storage, str]:
        for source, here in located:
            if here.in_output:
                return source.storage, here.folder
        here = locate(thing)
        return open_storage(here.folder, here.store), ""


def as_folder(place: str) -> str:
    """A folder as a user writes it, with the "/" at its end that `Derived.place` has: before the options of a store."""
    uri, _ = parse_input_uri(place)
    return f"{uri.rstrip('/')}/{place[len(uri) :]}"


def locate(thing: Derived, source: Source | None = None) -> Derived:
    """A thing whose place is as a user writes it, as the record in this output has it.

    Raises OutputError for a place that the output itself uses, and UriError.
    """
    uri, options = parse_input_uri(thing.place)
    place = absolute(local_path(uri)) + "/" * uri.endswith("/") if is_local(uri) else uri
    made = datetime.now(UTC).isoformat(timespec="seconds")
    here = replace(thing, place=place, store=options, host=socket.gethostname(), made=made)
    if source is None:
        return here
    here = replace(here, fingerprint=source.fingerprint, models=source.models)
    root = f"{source.storage.root.rstrip('/')}/"
    if not place.startswith(root):
        return here
    try:
        return replace(here, place=place.removeprefix(root), in_output=True, store=StoreOptions())
    except ValueError:
        raise OutputError(f"{thing.place} is a place that {root} itself uses; choose another") from None


def known_files(storage: Storage, thing: Derived) -> dict[str, Sequence[str]]:
    """The files of a thing that are on record."""
    try:
        return dict(Derived.from_json(storage.read(thing.record)).files)
    except (FileNotFoundError, *_DAMAGED):
        return {}


def write_record(storage: Storage, thing: Derived, files: Mapping[str, Sequence[str]]) -> None:
    """Put a thing with these files on record."""
    storage.write(thing.record, replace(thing, files=files).to_json())


def records(storage: Storage) -> Iterator[tuple[str, Derived | None]]:
    """What is on record in an output: the path of each record, and the thing; None for a damaged record."""
    for file in storage.list(FOLDER):
        if file.path.endswith(".json"):
            try:
                yield file.path, Derived.from_json(storage.read(file.path))
            except _DAMAGED:
                yield file.path, None


def clear(storage: Storage) -> None:
    """Delete what was made of an output and is in it. What is elsewhere stays, and stays on record for an erasure."""
    for path, thing in list(records(storage)):
        if thing and thing.in_output:
            storage.delete(*(join(thing.folder, name) for name in thing.files))
            storage.delete(path)
