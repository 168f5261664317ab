"""The people that a user knows: a file of faces and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from jobs.options import ArgumentError
from jobs.people.face_files import read_face_file
from pipeline.people.gallery import Gallery


@dataclass(frozen=True, slots=True)
class Labels:
    """numbers: (n,) of each face the number of its name in `names`, −1 for none.

    absent: rows that are no face of the output. unnamed: rows without a name, which say nothing.
    """

    numbers: np.ndarray
    names: list[str]
    absent: int = 0
    unnamed: int = 0

    @classmethod
    def none(cls, gallery: Gallery) -> Labels:
        """Nobody is known."""
        return cls(np.full(len(gallery), -1, np.int64), [])

    def of_people(self, person: np.ndarray) -> Mapping[int, str]:
        """The names of the people of a grouping, by their numbers there."""
        known = np.flatnonzero(self.numbers >= 0)
        return {int(person[face]): self.names[self.numbers[face]] for face in known}


def read_labels(file: str, gallery: Gallery) -> Labels:
    """The names in a CSV or Parquet file. Raises ArgumentError."""
    table = read_face_file(file, "name")
    named = table.filter(pc.not_equal(pc.utf8_trim_whitespace(table["name"]), ""))
    faces = gallery.find(named["uri"], named["face_index"].to_numpy())
    if not (faces >= 0).any():
        raise ArgumentError(
            f"--labels {file}: none of its {len(faces):,} rows with a name is a face of the output; compare the "
            "columns uri"
        )
    coded = named["name"].combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()[faces >= 0].astype(np.int64)
    found = faces[faces >= 0]
    numbers = np.full(len(gallery), -1, np.int64)
    numbers[found] = codes
    if len(twice := np.flatnonzero(numbers[found] != codes)):
        face = found[twice[0]]
        uri = gallery.uris[int(gallery.photos[face])]
        raise ArgumentError(f"--labels {file}: face {gallery.face_index[face]} of {uri} has two names; keep one")
    return Labels(numbers, coded.dictionary.to_pylist(), int((faces < 0).sum()), len(table) - len(named))
