"""The images that must not come back: `_erased.parquet` in the output, a list of hashes that the to-do leaves out.

A name can say who is in the picture, so the list keeps none: each entry is the sha256 of a salt, random for every
output, and the uri. Nobody can read a name off it; who has the output and guesses a name can still check the guess.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace

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
    """The list. salt: hexadecimal. hashes: string array, sha256 of salt + uri, hexadecimal, each once."""

    salt: str
    hashes: pa.Array

    def hash(self, text: str) -> str:
        """The hash that stands for a uri."""
        return hashlib.sha256((self.salt + text).encode()).hexdigest()

    def adding(self, uris: pa.Array) -> Erased:
        """The list with these uris, sorted: the order would tell who was erased when."""
        both = pa.concat_arrays([self.hashes, self._hashes(uris)]).unique()
        return replace(self, hashes=both.take(pc.sort_indices(both)))

    def without(self, uris: pa.Array) -> Erased:
        """The list less these uris."""
        return replace(self, hashes=self.hashes.filter(pc.invert(pc.is_in(self.hashes, value_set=self._hashes(uris)))))

    def _hashes(self, uris: pa.Array) -> pa.Array:
        return pa.array([self.hash(uri) for uri in uris.to_pylist()], pa.string())


def read_erased(storage: Storage) -> Erased:
    """The output's list; an empty one with a new salt if there is none. Raises OutputError if it is damaged."""
    try:
        content = storage.read(ERASED_PATH)
    except FileNotFoundError:
        return Erased(secrets.token_hex(16), pa.array([], pa.string()))
    try:
        table = pq.read_table(pa.BufferReader(content))
        return Erased(table.schema.metadata[_SALT].decode(), table["hash"].combine_chunks().cast(pa.string()))
    except (pa.ArrowException, KeyError, TypeError):
        raise OutputError(
            f"{storage.root}/{ERASED_PATH}, the list of images that must not come back, is damaged; restore it. "
            "Without it erased images are read again"
        ) from None


def write_erased(storage: Storage, erased: Erased) -> None:
    """Put the list in place of the old one. Called under the lease."""
    storage.write(ERASED_PATH, to_parquet(pa.table({"hash": erased.hashes}).replace_schema_metadata(
        {_SALT: erased.salt.encode()}
    )))
