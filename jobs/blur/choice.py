"""Which faces are hidden: all, or those that a file chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from jobs.options import ArgumentError
from jobs.people.face_files import read_face_file


@dataclass(frozen=True, slots=True)
class Choice:
    """Faces by uri and face_index. hides: whether these are hidden, or all but these. digest: of the choice."""

    faces: frozenset[tuple[str, int]]
    hides: bool
    digest: str

    def is_hidden(self, uri: str, face_index: int) -> bool:
        """Whether a face is to be hidden."""
        return ((uri, face_index) in self.faces) is self.hides


EVERYONE = Choice(frozenset(), False, "all faces")


def read_choice(only: str | None, but: str | None) -> Choice:
    """The choice of --only or --but; without either, everyone. Raises ArgumentError for a file that cannot be read."""
    place = only or but
    if place is None:
        return EVERYONE
    table = read_face_file(place)
    faces = frozenset(zip(table["uri"].to_pylist(), table["face_index"].to_pylist(), strict=True))
    names = "\n".join(f"{face_index} {uri}" for uri, face_index in sorted(faces))
    option = "only" if only else "but"
    return Choice(faces, bool(only), f"{option} {hashlib.sha256(names.encode()).hexdigest()[:16]}")


def refuse_unknown(choice: Choice, known: Collection[tuple[str, int]]) -> None:
    """Raises ArgumentError if a chosen face is not in the output: another face might be meant.

    known: the chosen faces that the output has.
    """
    if missing := sorted(choice.faces.difference(known)):
        uri, face_index = missing[0]
        raise ArgumentError(
            f"{len(missing):,} faces of {'--only' if choice.hides else '--but'} are not in OUTPUT, first {uri} "
            f"{face_index}; take uri and face_index from its faces/"
        )

