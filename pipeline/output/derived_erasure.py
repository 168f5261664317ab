"""Erase images from what was made of an output, by the records of `derived`."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.output import derived
from pipeline.output.derived import DELETE, Derived
from pipeline.output.ledger import to_parquet
from pipeline.storage import Storage, open_storage
from pipeline.storage.base import join
from pipeline.storage.faults import one_line
from pipeline.storage.uris import is_local


@dataclass(frozen=True, slots=True)
class Erasure:
    """What became of the things that were made of an output.

    changed: deleted, or free of the rows now. left: what may still show the images, and why, in words for the user.
    """

    changed: Sequence[Derived]
    left: Sequence[str]


def erase_derived(storage: Storage, uris: pa.Array, *, have_rows: bool) -> Erasure:
    """Free all that was made of an output of these images, as far as it can be reached. Call before their rows go.

    have_rows: whether the output has rows of these images. Raises OSError for a fault of the output itself.
    """
    changed, left = [], []
    for path, thing in list(derived.records(storage)):
        if thing is None:
            left.append(f"what {storage.root}/{path} names, because this record is damaged")
        elif have_rows or not thing.rows_only:
            freed, kept = _free(storage, thing, uris)
            if thing.on_erase == DELETE:
                _shrink(storage, path, thing, kept)
            changed += [thing] if freed else []
            left += [f"{thing.kind} {thing.place}, because {why}" for why in dict.fromkeys(kept.values())]
    return Erasure(changed, left)


def _shrink(storage: Storage, path: str, thing: Derived, kept: Collection[str]) -> None:
    """Leave only these files of a thing on record."""
    if kept:
        derived.write_record(storage, thing, {name: thing.files[name] for name in kept})
    else:
        storage.delete(path)


class _OutOfReach(Exception):   # noqa: N818
    """Why a file cannot be freed of an image."""


def _free(storage: Storage, thing: Derived, uris: pa.Array) -> tuple[bool, dict[str, str]]:
    """Delete the files of a thing, or the rows of these images in them.

    Returns whether there was anything to do, and of each file that is out of reach, why.
    """
    freed, kept = False, {}
    for name in thing.files:
        try:
            if thing.in_output:
                freed |= _free_file(storage, storage, thing, name, uris)
            else:
                freed |= _free_elsewhere(storage, thing, name, uris)
        except _OutOfReach as why:
            kept[name] = str(why)
    return freed, kept


def _free_elsewhere(storage: Storage, thing: Derived, name: str, uris: pa.Array) -> bool:
    """As _free_file, for a file that is not in the output. Raises _OutOfReach."""
    try:
        place = open_storage(thing.folder, thing.store)
        if hashlib.sha256(place.read(name)).hexdigest() not in thing.files[name]:
            raise _OutOfReach(f"{name} is no longer what was written there")
        return _free_file(storage, place, thing, name, uris)
    except FileNotFoundError:
        if is_local(thing.place) and thing.host != socket.gethostname():
            raise _OutOfReach(f"it was written on another machine, {thing.host}") from None
        return False
    except (OSError, UserError) as error:
        raise _OutOfReach(one_line(error)) from None


def _free_file(storage: Storage, place: Storage, thing: Derived, name: str, uris: pa.Array) -> bool:
    """Delete a file of a thing, or the rows of these images in it. Returns whether there was anything to do."""
    path = join(thing.folder, name) if thing.in_output else name
    try:
        place.open(path).close()
    except FileNotFoundError:
        return False
    if thing.on_erase == DELETE:
        place.delete(path)
        return True
    content = place.read(path)
    kept = _without(content, uris)
    if kept is None:
        place.delete(path)
    elif kept is not content:
        digests = [*thing.files[name], hashlib.sha256(kept).hexdigest()]
        derived.write_record(storage, thing, {**derived.known_files(storage, thing), name: digests})
        place.write(path, kept)
    return kept is not content


def _without(content: bytes, uris: pa.Array) -> bytes | None:
    """A Parquet file without the rows of these images: itself if it has none; None if it cannot be read."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        found = pc.is_in(table["uri"], value_set=uris)
    except (pa.ArrowException, KeyError):
        return None
    return to_parquet(table.filter(pc.invert(found))) if pc.any(found).as_py() else content
