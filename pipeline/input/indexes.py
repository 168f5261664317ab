"""The indexes of archives, kept beside the output, so that a later run does not read the archives again.

    OUTPUT/_index/<hash of the archive's uri>.parquet     columns of ENTRIES

An index counts only for the archive that it was made from: its etag, else its size and time, is in the metadata.
Deleting the folder costs time, nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Storage

FOLDER = "_index"
_VERSION = b"facelake.version"
_NAMES_AT_ONCE = 50_000
_FORMAT = 1              # a change of the columns or of their meaning makes older indexes void

ENTRIES = pa.schema([
    pa.field("name", pa.string(), nullable=False),
    pa.field("offset", pa.int64()),      # null: a link, a device, or the like
    pa.field("size", pa.int64()),        # null: see containers.py
])


class KeptIndexes:
    """The indexes that a storage keeps.

    is_erased: whether the image of that uri was erased. An index with such a name is not kept: a name can say who is in
    the picture.
    """

    def __init__(self, storage: Storage, is_erased: Callable[[str], bool] | None = None) -> None:
        self._storage = storage
        self._is_erased = is_erased

    def read(self, container: dict[str, Any]) -> pa.Table | None:
        """The index of a container, given as a row of schemas.LISTING; None if there is none of this version."""
        version = _version(container)
        if version is None:
            return None
        try:
            table = pq.read_table(pa.BufferReader(self._storage.read(_path(container["uri"]))))
            found = (table.schema.metadata or {}).get(_VERSION)
            return table.cast(ENTRIES) if found == version else None
        except (OSError, pa.ArrowException, ValueError):       # missing, cut off or damaged: it is made again
            return None

    def write(self, container: dict[str, Any], index: pa.Table) -> None:
        """Keep an index, if the container's version is known. A storage that cannot be written keeps none."""
        version, uri = _version(container), container["uri"]
        if version is None:
            return
        out = pa.BufferOutputStream()
        pq.write_table(index.replace_schema_metadata({_VERSION: version}), out, compression="zstd")
        try:
            if not self._has_erased(uri, index):
                self._storage.write(_path(uri), out.getvalue().to_pybytes())
        except OSError:          # the run's own writes will say so
            return

    def _has_erased(self, uri: str, index: pa.Table) -> bool:
        if self._is_erased is None:
            return False
        batches = index.to_batches(_NAMES_AT_ONCE)
        return any(self._is_erased(f"{uri}#{name}") for batch in batches for name in batch["name"].to_pylist())


def forget_indexes(storage: Storage) -> None:
    """Delete all indexes: they hold the names of images."""
    storage.delete_tree(FOLDER)


def _path(uri: str) -> str:
    return f"{FOLDER}/{hashlib.sha256(uri.encode()).hexdigest()[:32]}.parquet"


def _version(container: dict[str, Any]) -> bytes | None:
    """What changes when the container does; None if that is not known."""
    etag, size, mtime = container["etag"], container["size"], container["mtime"]
    if etag is None and (size is None or mtime is None):
        return None
    version = etag if etag is not None else f"{size} {mtime.isoformat()}"
    return f"{_FORMAT} {container['uri']} {version}".encode()
