"""Choose the photos that a page shows, by a hash of their names.

Every photo is as likely to be chosen as any other, the same output gives the same photos, and of an output that has
grown most stay the same.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa


class Choice:
    """The photos with the lowest hashes: at least so many, and more while they have no more faces than allowed."""

    def __init__(self, schema: pa.Schema, photos: int, faces: int) -> None:
        self._photos, self._faces = photos, faces
        self._table = schema.empty_table()
        self._keys = np.zeros(0, np.uint64)

    def add(self, rows: pa.Table) -> None:
        """Let these rows of images/ take part."""
        table = pa.concat_tables([self._table, rows.select(self._table.column_names)])
        keys = np.concatenate([self._keys, hashes(rows["uri"])])
        order = np.argsort(keys, kind="stable")
        faces = table["n_faces"].fill_null(0).to_numpy()[order]
        within = (faces > 0) & (np.cumsum(faces) <= self._faces)
        kept = order[(np.arange(len(order)) < self._photos) | within]
        self._table, self._keys = table.take(pa.array(kept)).combine_chunks(), keys[kept]

    @property
    def table(self) -> pa.Table:
        """The chosen rows, the lowest hash first; each uri once, also while a killed run has left it in two parts."""
        uris = self._table["uri"].to_pylist()
        first = [i for i, uri in enumerate(uris) if uri not in uris[i - 1 : i]]      # equal names have equal hashes
        return self._table.take(pa.array(first, pa.int64()))


def hashes(uris: pa.ChunkedArray) -> np.ndarray:
    """A number for every name; (n,) uint64."""
    digests = (hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in uris.to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)
