"""The list of erased images, `_erased.parquet` in the output: the to-do leaves them out.

A file name can say who is in the picture, so the list holds no names. Each entry is the sha256 of a salt, random per
output, and the uri in the Unicode form NFC, because a listing and a list may spell one file differently. The names
cannot be read from it, but anyone who has the output can check a guess.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output.ledger import to_parquet
from pipeline.storage import Storage

ERASED_PATH = "_erased.parquet"
_SALT = b"facelake.salt"


@dataclass(frozen=True, slots=True)
class Erased:
    """The list. salt: hexadecimal. hashes: string array of distinct hashes, sha256 of salt + uri, hexadecimal.

    Earlier versions hashed each uri as it was given, so both hashes are looked for.
    """

    salt: str
    hashes: pa.Array

    def hash(self, text: str) -> str:
        """The hash of a uri."""
        return self._hash(unicodedata.normalize("NFC", text))

    def has(self, uri: str, hashes: frozenset[str]) -> bool:
        """Whether a uri is on the list. hashes: those of the list."""
        return self.hash(uri) in hashes or self._hash(uri) in hashes

    def adding(self, uris: pa.Array) -> Erased:
        """The list with these uris too; sorted, because the order would show who was erased when."""
        both = pa.concat_arrays([self.hashes, pa.array(map(self.hash, uris.to_pylist()), pa.string())]).unique()
        return replace(self, hashes=both.take(pc.sort_indices(both)))

    def without(self, uris: pa.Array) -> Erased:
        """The list without these uris."""
        gone = pa.array([of(uri) for uri in uris.to_pylist() for of in (self.hash, self._hash)], pa.string())
        return replace(self, hashes=self.hashes.filter(pc.invert(pc.is_in(self.hashes, value_set=gone))))

    def _hash(self, text: str) -> str:
        return hashlib.sha256((self.salt + text).encode()).hexdigest()


def read_erased(storage: Storage) -> Erased:
    """The list of an output; if it has none, an empty one with a new salt. Raises OutputError if it is damaged."""
    try:
        content = storage.read(ERASED_PATH)
    except FileNotFoundError:
        return Erased(secrets.token_hex(16), pa.array([], pa.string()))
    try:
        table = pq.read_table(pa.BufferReader(content))
        return Erased(table.schema.metadata[_SALT].decode(), table["hash"].combine_chunks().cast(pa.string()))
    except (pa.ArrowException, KeyError, TypeError):
        raise OutputError(
            f"{storage.root}/{ERASED_PATH}, the list of erased images, is damaged; restore it from a backup. If you "
            "delete it, the next run reads the erased images again"
        ) from None


def erased_rule(storage: Storage) -> Callable[[str], bool]:
    """Whether the image of a uri was erased. The list is read at the first question; see `read_erased`."""

    @cache
    def known() -> tuple[Erased, frozenset[str]]:
        erased = read_erased(storage)
        return erased, frozenset(erased.hashes.to_pylist())

    def is_erased(uri: str) -> bool:
        erased, hashes = known()
        return bool(hashes) and erased.has(uri, hashes)

    return is_erased


def write_erased(storage: Storage, erased: Erased) -> None:
    """Replace the list in the output. Needs the lease."""
    storage.write(ERASED_PATH, to_parquet(pa.table({"hash": erased.hashes}).replace_schema_metadata(
        {_SALT: erased.salt.encode()}
    )))
