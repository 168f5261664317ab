import numpy as np
import pytest

from pipeline.errors import OutputError
from pipeline.people.tables import FACES, PEOPLE, Made, files_of, keep_numbers, other_tables, read_made, read_tables
from pipeline.storage import open_storage


@pytest.mark.parametrize(
    ("person", "before", "numbers"),
    [
        ([], [], []),
        ([0, 1, 1], [-1, -1, -1], [10, 9]),                  # the larger one first
        ([0, 0, 1], [7, -1, 3], [7, 3]),
        ([0, 0, 0, 1], [7, 7, 3, 3], [7, 3]),
        ([0, 0, 1, 1, 1], [7, 7, 7, 7, 7], [9, 7]),          # one became two
        ([0, 0, 0, 0, 1], [7, 7, 3, 3, -1], [3, 9]),         # two became one; both have as many: the smaller number
    ],
)
def test_people_keep_their_numbers(person, before, numbers):
    assert keep_numbers(np.array(person, int), np.array(before, int), 9).tolist() == numbers


def test_tables_are_those_that_groups_json_names(tmp_path):
    storage = open_storage(str(tmp_path))
    assert read_made(storage, "people") is None
    for run in ("r1", "r2"):
        for name, content in files_of(Made(run, "f"), FACES.empty_table(), PEOPLE.empty_table()):
            storage.write(f"people/{name}", content)
    storage.write("people/mine.parquet", b"x")
    made = read_made(storage, "people")
    assert made == Made("r2", "f")
    assert other_tables(storage, "people", made) == ["faces-r1.parquet", "people-r1.parquet"]
    faces, people = read_tables(storage, "people", made)
    assert (faces.schema, people.schema) == (FACES, PEOPLE)
    storage.delete(f"people/{made.people}")
    with pytest.raises(OutputError, match=r"people-r2.parquet is missing or damaged .* people get new numbers"):
        read_tables(storage, "people", made)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{"])
def test_a_damaged_groups_json_is_named(tmp_path, content):
    storage = open_storage(str(tmp_path))
    storage.write("groups.json", content)
    with pytest.raises(OutputError, match=r"groups\.json is damaged"):
        read_made(storage, "")
