"""Unit vectors as 16-bit numbers in two planes of bytes: the high one for a scan, the low one to tell who is nearer.

With one scale for a segment a value is about scale * (256 * high + low). The high bytes alone are an int8 copy. faiss
multiplies them with an int8 copy of the probe, in whole numbers. By how much the two products can be off is known: the
length of what the rounding took away bounds the product of that with any unit vector (Cauchy and Schwarz).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np

_BLOCK = 4096
_FLOAT32 = 1e-5      # what sums of 512 products in float32 may be off


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of a segment. high: a faiss index of bytes. low: (n, dim) uint8.

    scale: of the 16-bit values. high_error, low_error: the longest difference between a vector and its high bytes, and
    between a vector and both.
    """

    high: faiss.IndexScalarQuantizer
    low: np.ndarray
    scale: float
    high_error: float
    low_error: float

    @classmethod
    def of(cls, vectors: np.ndarray) -> Codes:
        """The codes of unit vectors (n, dim) float32, all finite."""
        n, dim = vectors.shape
        high = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
        high.is_trained = True                         # there is nothing to learn: the values are bytes already
        low = np.empty((n, dim), np.uint8)
        scale = max(float(vectors.max()), -float(vectors.min()), 1e-9) / 32767
        high_error = low_error = 0.0
        for start in range(0, n, _BLOCK):
            block = vectors[start : start + _BLOCK]
            values = np.rint(block / scale).astype(np.int32)
            tops = (values >> 8).astype(np.float32)
            high.add(tops)
            low[start : start + _BLOCK] = values & 255
            high_error = max(high_error, _longest(block - _middle(tops, scale)))
            low_error = max(low_error, _longest(block - values * np.float32(scale)))
        return cls(high, low, scale, high_error, low_error)

    def to_bytes(self) -> dict[str, bytes]:
        """The two planes, as `read` takes them."""
        return {"high": faiss.serialize_index(self.high).tobytes(), "low": self.low.tobytes()}

    @classmethod
    def read(cls, planes: Mapping[str, np.ndarray], scale: float, high_error: float, low_error: float) -> Codes:
        """Codes whose planes are arrays of bytes, which may be files: they are not copied."""
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(planes["high"]), planes["high"].size)
        high = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)
        high.referenced_objects = [planes["high"], reader]
        return cls(high, planes["low"].reshape(high.ntotal, high.d), scale, high_error, low_error)

    def __len__(self) -> int:
        return len(self.low)

    def scan(self, probes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows with the highest products by the high bytes: (m, count), the least product of each probe among them,
        and by how much a product may be off. probes: (m, dim) float32, at most of length 1."""
        step = np.maximum(np.abs(probes).max(axis=1, keepdims=True), 1e-9) / 127
        whole = np.rint(probes / step)
        products, rows = self.high.search(whole, count)
        least = step[:, 0] * 256 * self.scale * (products[:, -1] + 0.5 * whole.sum(axis=1))
        lost = np.linalg.norm(probes - step * whole, axis=1)
        return rows, least, lost * (1 + self.high_error) + self.high_error + _FLOAT32

    def products(self, probe: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The products of a probe (dim,) with some rows by both planes, off by at most `low_error` and rounding."""
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _BLOCK):
            found[start : start + _BLOCK] = self.vectors(rows[start : start + _BLOCK]) @ probe
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Some vectors as both planes have them; (n, dim) float32."""
        codes = faiss.rev_swig_ptr(self.high.codes.data(), self.low.size).reshape(self.low.shape)
        values = (codes[rows].astype(np.float32) - 128) * 256 + self.low[rows]
        found: np.ndarray = values * np.float32(self.scale)
        return found

    @property
    def error(self) -> float:
        """By how much `products` may be off."""
        return self.low_error + _FLOAT32


def _middle(tops: np.ndarray, scale: float) -> np.ndarray:
    """The vectors that the high bytes stand for: low bytes are 128 on average."""
    found: np.ndarray = (tops + np.float32(0.5)) * np.float32(256 * scale)
    return found


def _longest(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max(initial=0)))
