"""Histograms of the faces of an output, counted part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

_PIXELS = [round(2 ** (i / 2)) for i in range(4, 30)]                # each √2 times the one before
_NORMS = [0.0, *(float(f"{2 ** (i / 4):.3g}") for i in range(-4, 45))]


@dataclass(frozen=True, slots=True)
class Scale:
    """The bins of a histogram. edges: ascending; what is outside counts in the first and the last bin."""

    title: str
    edges: Sequence[float]
    unit: str = ""
    whole: bool = False          # the values are whole numbers

    def name(self, i: int) -> str:
        """What a bin holds, for the reader: "16 to 23 px"."""
        low, high = self.edges[i], self.edges[i + 1]
        if self.whole:
            low, high = float(np.ceil(low)), float(np.ceil(high)) - 1
        text = f"{low:,.4g} to {high:,.4g}" if high > low else f"{low:,.4g}"
        return text.replace("-", "−") + self.unit


SCALES: Mapping[str, Scale] = MappingProxyType({
    "faces": Scale(
        "Faces a photo", [0, 1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101, 201, 501, 1001, 3001], whole=True
    ),
    "size": Scale("Size: the longer side of the box", _PIXELS, " px"),
    "det_score": Scale("Score of the detector", [round(0.05 * i, 2) for i in range(21)]),
    "roll_deg": Scale("Roll, clockwise", list(range(-180, 181, 15)), "°"),
    "sharpness": Scale("Sharpness of the aligned face", [0, *(4**i for i in range(9))]),
    "embedding_norm": Scale("Norm: the length before normalisation", _NORMS),
})


@dataclass(frozen=True, slots=True)
class Bar:
    """A bin that is drawn: what it holds, how many, and its height as a share of the highest."""

    name: str
    count: int
    height: float


@dataclass(slots=True)
class Histogram:
    """Counts values. unknown: how many were not measured."""

    scale: Scale
    counts: np.ndarray = field(init=False)
    unknown: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.scale.edges) - 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count these values; NaN is not measured."""
        known = values[np.isfinite(values)]
        edges = np.asarray(self.scale.edges, np.float64)
        inside = np.clip(known, edges[0], np.nextafter(edges[-1], -np.inf))
        self.counts += np.histogram(inside, edges)[0]
        self.unknown += len(values) - len(known)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def bars(self) -> list[Bar]:
        """The bins from the first to the last that has any."""
        filled = np.flatnonzero(self.counts)
        if not len(filled):
            return []
        highest = int(self.counts.max())
        return [
            Bar(self.scale.name(i), int(self.counts[i]), self.counts[i] / highest)
            for i in range(filled[0], filled[-1] + 1)
        ]

    @property
    def summary(self) -> str:
        """The histogram in one sentence, for who cannot see it."""
        if not self.bars:
            return "no values"
        top = max(self.bars, key=lambda bar: bar.count)
        ends = f"from {self.bars[0].name} to {self.bars[-1].name}"
        return f"{ends}; the most, {top.count:,} of {self.total:,}: {top.name}"


class Histograms(dict[str, Histogram]):
    """All histograms of the page, by the name of their scale."""

    def __init__(self) -> None:
        super().__init__({name: Histogram(scale) for name, scale in SCALES.items()})

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Count the values of some rows."""
        for name, values in columns.items():
            self[name].add(values.astype(np.float64))

    def filled(self) -> Iterator[Histogram]:
        """Those with values."""
        return (histogram for histogram in self.values() if histogram.total)
