"""The people of an output, as jobs.cluster has grouped its faces: the largest groups, and those that may be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output import claim
from pipeline.people.outputs import Output
from pipeline.people.tables import read_made, read_tables

FOLDER = "people"         # where jobs.cluster writes if it is not told otherwise
SHOWN_GROUPS = 24
SHOWN_SUSPECTS = 12
SHOWN_FACES = 8           # of a group

Place = tuple[str, int]
"""The uri and the face_index of a face."""


@dataclass(frozen=True, slots=True)
class Group:
    """A person. faces: some of it, from the most to the least like the person."""

    person: int
    name: str | None
    size: int
    cohesion: float | None
    best: Place
    faces: Sequence[Place] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    """Two groups that are alike: they may be one person."""

    first: Group
    second: Group
    cosine: float


@dataclass(frozen=True, slots=True)
class Groups:
    """What a page shows of the people. several: how many have more than one face. rows: the table of all faces.

    note: why the groups are not shown.
    """

    several: int = 0
    alone: int = 0
    largest: Sequence[Group] = ()
    suspects: Sequence[Suspect] = ()
    rows: pa.Table | None = field(default=None, repr=False)
    note: str = ""

    def places(self) -> Iterator[Place]:
        """The faces that the page shows."""
        for group in self.largest:
            yield from group.faces
        for suspect in self.suspects:
            yield from (suspect.first.best, suspect.second.best)

    def persons_of(self, uris: Sequence[str]) -> Mapping[Place, int]:
        """The persons of the faces of these images."""
        if self.rows is None:
            return {}
        rows = self.rows.filter(pc.is_in(self.rows["uri"], value_set=pa.array(uris, pa.string())))
        columns = (rows[name].to_pylist() for name in ("uri", "face_index", "person"))
        return {(uri, face_index): person for uri, face_index, person in zip(*columns, strict=True)}


def read_groups(output: Output) -> Groups | None:
    """The groups in the folder `people` of an output; None if there are none. Raises OutputError for damaged tables."""
    made = read_made(output.storage, FOLDER)
    if made is None:
        return None
    if made.output != (claim.begun_with(output.storage) or {}).get("fingerprint"):
        return Groups(note="The groups in people/ are of another output.")
    faces, people = read_tables(output.storage, FOLDER, made)
    groups = {row["person"]: Group(
        row["person"], row["name"], row["size"], row["cohesion"], (row["best_uri"], row["best_face_index"])
    ) for row in shown_people(people).to_pylist()}
    several = people.filter(pc.greater(people["size"], 1))
    by_size = several.sort_by([("size", "descending"), ("person", "ascending")]).slice(0, SHOWN_GROUPS)
    return Groups(
        len(several), len(people) - len(several),
        [with_faces(groups[person], faces) for person in by_size["person"].to_pylist()],
        list(suspects(people, groups)), faces,
    )


def shown_people(people: pa.Table) -> pa.Table:
    """The rows of the largest people, of those that are most like another, and of these others."""
    largest = people.sort_by([("size", "descending"), ("person", "ascending")]).slice(0, SHOWN_GROUPS)
    alike = most_like_another(people)
    wanted = pa.chunked_array([*largest["person"].chunks, *alike["person"].chunks, *alike["nearest_person"].chunks])
    return people.filter(pc.is_in(people["person"], value_set=wanted.combine_chunks()))


def most_like_another(people: pa.Table) -> pa.Table:
    """The people that are most like another one, both with more than one face; each pair has two rows."""
    several = people.filter(pc.and_kleene(pc.greater(people["size"], 1), pc.is_valid(people["nearest_person"])))
    is_several = pc.is_in(several["nearest_person"], value_set=several["person"].combine_chunks())
    alike = several.filter(is_several).sort_by([("nearest_cosine", "descending"), ("person", "ascending")])
    return alike.slice(0, 2 * SHOWN_SUSPECTS)


def suspects(people: pa.Table, groups: Mapping[int, Group]) -> Iterator[Suspect]:
    """The pairs of groups that are most alike, each once."""
    pairs: dict[tuple[int, int], float] = {}
    for row in most_like_another(people).to_pylist():
        first, second = sorted((row["person"], row["nearest_person"]))
        pairs.setdefault((first, second), row["nearest_cosine"])
    for (first, second), cosine in list(pairs.items())[:SHOWN_SUSPECTS]:
        if first in groups and second in groups:
            yield Suspect(groups[first], groups[second], cosine)


def with_faces(group: Group, faces: pa.Table) -> Group:
    """A group with some of its faces: the most alike, the least alike, and some between them, evenly."""
    rows = faces.filter(pc.equal(faces["person"], group.person)).sort_by([
        ("cosine_to_person", "descending"), ("uri", "ascending"), ("face_index", "ascending"),
    ])
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN_FACES, len(rows))).round().astype(np.int64))
    shown = rows.take(pa.array(chosen))
    places = zip(shown["uri"].to_pylist(), shown["face_index"].to_pylist(), strict=True)
    return Group(group.person, group.name, group.size, group.cohesion, group.best, list(places))
