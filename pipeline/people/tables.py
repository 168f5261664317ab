"""The tables of the people of an output: who each face is, and who there is.

Both lie in one folder as `faces-<run>.parquet` and `people-<run>.parquet`; `groups.json`, written last, names those
that count. So a run that is killed leaves the old tables or the new ones. Then the files of older runs are deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError, first_line, is_damage
from pipeline.output.ledger import to_parquet
from pipeline.people.gallery import Gallery
from pipeline.people.grouping import Grouping
from pipeline.storage import Storage
from pipeline.storage.base import join

GROUPS_JSON = "groups.json"
_TABLE = re.compile(r"(faces|people)-.+\.parquet")

FACES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("person", pa.int64(), nullable=False),
        pa.field("cosine_to_person", pa.float32(), nullable=False),
        pa.field("is_core", pa.bool_(), nullable=False),
    ]
)
PEOPLE = pa.schema(
    [
        pa.field("person", pa.int64(), nullable=False),
        pa.field("name", pa.string()),                  # of --labels
        pa.field("size", pa.int32(), nullable=False),
        pa.field("n_core", pa.int32(), nullable=False),
        pa.field("cohesion", pa.float32()),             # null below two core faces
        pa.field("nearest_person", pa.int64()),
        pa.field("nearest_cosine", pa.float32()),
        pa.field("best_uri", pa.string(), nullable=False),
        pa.field("best_face_index", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Made:
    """groups.json. output: its fingerprint. next_person: a number that no person had. settings: of the run."""

    run_id: str
    output: str
    next_person: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def faces(self) -> str:
        """The file with a row for each face."""
        return f"faces-{self.run_id}.parquet"

    @property
    def people(self) -> str:
        """The file with a row for each person."""
        return f"people-{self.run_id}.parquet"

    def to_json(self) -> bytes:
        """The content of groups.json."""
        names = {"faces": self.faces, "people": self.people}
        return json.dumps(names | asdict(self), indent=1).encode()


def read_made(storage: Storage, folder: str) -> Made | None:
    """What groups.json says; None if there is none. Raises OutputError for a damaged one."""
    path = join(folder, GROUPS_JSON)
    try:
        found = json.loads(storage.read(path))
        return Made(**{name: found[name] for name in Made.__dataclass_fields__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise OutputError(
            f"{storage.root}/{path} is damaged: restore it, or delete its folder, and the people get new numbers"
        ) from None


def read_tables(storage: Storage, folder: str, made: Made) -> tuple[pa.Table, pa.Table]:
    """The faces and the people. Raises OutputError if a table is missing or damaged."""
    tables = []
    for name, schema in ((made.faces, FACES), (made.people, PEOPLE)):
        try:
            content = storage.read(join(folder, name))
            tables.append(pq.read_table(pa.BufferReader(content)).select(schema.names).cast(schema))
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            if not is_damage(error):
                raise
            raise OutputError(
                f"{join(storage.root, join(folder, name))} is missing or damaged ({first_line(error)}): "
                "restore it, or delete its folder, and the people get new numbers"
            ) from None
    return tables[0], tables[1]


def other_tables(storage: Storage, folder: str, made: Made) -> list[str]:
    """The names of tables in a folder that are not these: of older runs, and of runs that were killed."""
    names = [file.path.rsplit("/", 1)[-1] for file in storage.list(folder)]
    return [name for name in names if _TABLE.fullmatch(name) and name not in (made.faces, made.people)]


def keep_numbers(person: np.ndarray, before: np.ndarray, next_person: int) -> np.ndarray:
    """A number for each person of a grouping, (people,).

    person: (n,) of each face, from 0. before: (n,) the number of the person that the face was of, −1 for a new face.
    A person keeps the number that most of its faces had; of two people that would keep one number, the one with more of
    its faces. Others get new numbers, from next_person, those with more faces first.
    """
    known = np.flatnonzero(before >= 0)
    both, counts = np.unique(person[known] << 32 | before[known], return_counts=True)
    numbers = np.full(int(person.max(initial=-1)) + 1, -1, np.int64)
    given: set[int] = set()
    for pair in both[np.argsort(-counts, kind="stable")].tolist():
        now, old = pair >> 32, pair & 0xFFFFFFFF
        if numbers[now] < 0 and old not in given:
            numbers[now] = old
            given.add(old)
    new = np.flatnonzero(numbers < 0)
    new = new[np.argsort(-np.bincount(person, minlength=len(numbers))[new], kind="stable")]
    numbers[new] = next_person + np.arange(len(new))
    return numbers


def faces_table(gallery: Gallery, grouping: Grouping, numbers: np.ndarray) -> pa.Table:
    """A row for each face, sorted by uri and face_index."""
    table = pa.table(
        [gallery.uris.take(pa.array(gallery.photos)), pa.array(gallery.face_index, pa.int32()),
         numbers[grouping.person], grouping.cosine, grouping.is_core],
        schema=FACES,
    )
    return table.sort_by([("uri", "ascending"), ("face_index", "ascending")])


def people_table(
    gallery: Gallery, grouping: Grouping, numbers: np.ndarray, names: Mapping[int, str]
) -> pa.Table:
    """A row for each person, those that are most like another person first. names: of people of the grouping."""
    nearest = grouping.nearest
    table = pa.table(
        [
            numbers,
            pa.array([names.get(person) for person in range(len(numbers))], pa.string()),
            pa.array(np.bincount(grouping.person, minlength=len(numbers)), pa.int32()),
            pa.array(grouping.core_size, pa.int32()),
            pa.array(grouping.cohesion, pa.float32(), mask=np.isnan(grouping.cohesion)),
            pa.array(np.append(numbers, 0)[nearest], pa.int64(), mask=nearest < 0),
            pa.array(grouping.nearest_cosine, pa.float32(), mask=nearest < 0),
            gallery.uris.take(pa.array(gallery.photos[grouping.best])),
            pa.array(gallery.face_index[grouping.best], pa.int32()),
        ],
        schema=PEOPLE,
    )
    return table.sort_by([("nearest_cosine", "descending"), ("person", "ascending")])


def files_of(made: Made, faces: pa.Table, people: pa.Table) -> Sequence[tuple[str, bytes]]:
    """The files, in the order in which they are to be written."""
    return [(made.faces, to_parquet(faces)), (made.people, to_parquet(people)), (GROUPS_JSON, made.to_json())]
