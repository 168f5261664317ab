"""The outcome of a comparison: cosines, verdicts, the answer in words, and the content of the JSON file."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from jobs.people.subjects import Face
from pipeline.people.likeness import Threshold
from pipeline.text import printable

MATRIX_FACES = 16        # more are too wide for a terminal
LISTED_PAIRS = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two faces by their numbers. same_person: None without a threshold. same_photo: both are of one argument."""

    first: int
    second: int
    cosine: float
    same_person: bool | None
    same_photo: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Faces and the cosines of all pairs, (n, n). threshold: None if the embedder has none.

    embedder: the fingerprint of its card. subjects: the number of arguments.
    """

    faces: Sequence[Face]
    cosines: np.ndarray
    threshold: Threshold | None
    embedder: Mapping[str, Any]
    subjects: int

    def pairs(self) -> list[Pair]:
        """All pairs of faces: those of two arguments first, the most alike of each kind first."""
        found = []
        for i, j in combinations(range(len(self.faces)), 2):
            cosine = float(self.cosines[i, j])
            same_person = None if self.threshold is None else cosine >= self.threshold.cosine
            same_photo = self.faces[i].subject == self.faces[j].subject
            found.append(Pair(i, j, cosine, same_person, same_photo))
        return sorted(found, key=lambda pair: (pair.same_photo, -pair.cosine))

    def answer(self) -> str:
        """The outcome in one line."""
        pairs = self.pairs()
        best, across = pairs[0], [pair for pair in pairs if not pair.same_photo]
        if self.threshold is None:
            return f"no verdict, the embedder has no threshold: the highest cosine is {best.cosine:.3f}"
        limit = f"threshold {self.threshold.cosine:.3f} at a false positive rate of {self.threshold.fpr:g}"
        if len(pairs) == 1:
            return f"{verdict(best)}: cosine {best.cosine:.3f}, {limit}"
        same = [pair for pair in across if pair.same_person]
        most_alike = f"{self.label(best.first)} and {self.label(best.second)}, cosine {best.cosine:.3f}"
        if self.subjects == 2 and same:
            more = f"; {len(same):,} pairs in all" if len(same) > 1 else ""
            return f"same person in both: {most_alike}{more}; {limit}"
        if self.subjects == 2:
            return f"nobody is in both: the most alike are {most_alike}; {limit}"
        among = across or pairs      # `best` is of these
        count = sum(bool(pair.same_person) for pair in among)
        return f"{count:,} of {len(among):,} pairs are the same person: the most alike are {most_alike}; {limit}"

    def label(self, number: int) -> str:
        """A face in words: its file, or the whole name where two files are called alike."""
        names = {face.subject: face.name for face in self.faces}
        short = {subject: posixpath.basename(name) for subject, name in names.items()}
        face = self.faces[number]
        name = short[face.subject] if len(set(short.values())) == len(set(names.values())) else face.name
        return f"{name} #{face.row['face_index']}"

    def lines(self) -> Iterator[str]:
        """The answer, and for more than two faces the faces and their cosines."""
        yield printable(self.answer())
        if len(self.faces) <= 2:
            return
        yield ""
        for i, face in enumerate(self.faces):
            yield printable(f"{i:4}  {face.name} #{face.row['face_index']}  score {face.row['det_score']:.2f}")
        yield ""
        yield from self._matrix() if len(self.faces) <= MATRIX_FACES else self._listed()

    def _matrix(self) -> Iterator[str]:
        numbers = range(len(self.faces))
        yield "cosine" + "".join(f"{i:>7} " for i in numbers)
        for i in numbers:
            yield f"{i:4}  " + "".join(f"{self.cosines[i, j]:7.3f}{self._mark(i, j)}" for j in numbers).rstrip()
        if self.threshold:
            yield "* the same person"

    def _mark(self, i: int, j: int) -> str:
        return "*" if i != j and self.threshold and self.cosines[i, j] >= self.threshold.cosine else " "

    def _listed(self) -> Iterator[str]:
        pairs = self.pairs()
        for pair in pairs[:LISTED_PAIRS]:
            yield f"{pair.first:4} {pair.second:4}  {pair.cosine:6.3f}  {verdict(pair)}"
        if len(pairs) > LISTED_PAIRS:
            yield f"… and {len(pairs) - LISTED_PAIRS:,} pairs more: --json writes all"

    def content(self) -> dict[str, Any]:
        """What --json writes."""
        threshold = self.threshold and {"cosine": self.threshold.cosine, "false_positive_rate": self.threshold.fpr}
        return {
            "answer": self.answer(),
            "threshold": threshold,
            "embedder": {name: self.embedder[name] for name in ("architecture", "tensors_sha256")},
            "faces": [{"argument": face.subject, "name": face.name, **plain(face.row)} for face in self.faces],
            "cosines": [[round(float(cosine), 6) for cosine in row] for row in self.cosines],
            "pairs": [
                {"first": pair.first, "second": pair.second, "cosine": round(pair.cosine, 6),
                 "same_person": pair.same_person, "same_photo": pair.same_photo}
                for pair in self.pairs()
            ],
        }  # fmt: skip


def verdict(pair: Pair) -> str:
    """The verdict in words."""
    return {True: "same person", False: "different people", None: "no verdict"}[pair.same_person]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of faces/ for JSON, which has no NaN."""
    return {name: plain_value(value) for name, value in row.items()}


def plain_value(value: Any) -> Any:
    """A value for JSON."""
    if isinstance(value, list):
        return [plain_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
