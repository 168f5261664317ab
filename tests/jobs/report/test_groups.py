"""The people in a report, from tables as jobs.cluster writes them."""

import json

import pyarrow as pa
import pytest

from jobs.report.__main__ import main
from jobs.report.groups import read_groups
from pipeline.output.ledger import to_parquet
from pipeline.people.outputs import open_output
from pipeline.people.tables import FACES, PEOPLE, Made, files_of
from pipeline.storage import open_storage
from tests.jobs.preview.test_write import Page, aligned, photo, write_output, write_photo
from tests.support.browser import HOSTILE

# person: its faces (uri, cosine to the person), most alike first; person 3 is alone.
MEMBERS = {
    1: [("a", 0.9), ("b", 0.7), ("c", 0.5)], 2: [("d", 0.9), ("e", 0.8)], 3: [("f", 1.0)], 4: [("g", 1.0), ("h", 1.0)],
}
NEAREST = {1: (2, 0.4), 2: (1, 0.4), 3: (1, 0.6), 4: (1, 0.2)}


def write_groups(output, folder="", members=MEMBERS, fingerprint=None, name=None):
    """The tables of people. folder: of the images. name: of person 1."""
    storage = open_storage(str(output))
    faces = [(f"{folder}/{uri}.jpg", 0, person, cosine, True)
             for person, found in members.items() for uri, cosine in found]
    people = [
        (person, name if person == 1 else None, len(found), len(found), 0.5, *NEAREST[person],
         f"{folder}/{found[0][0]}.jpg", 0)
        for person, found in members.items()
    ]
    tables = [pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
              for rows, schema in ((faces, FACES), (people, PEOPLE))]
    made = Made("r1", fingerprint or json.loads(storage.read("output.json"))["fingerprint"])
    for file, content in files_of(made, *tables):
        storage.write(f"people/{file}", content)
    return storage


def test_no_groups(tmp_path):
    write_output(tmp_path)
    assert read_groups(open_output(str(tmp_path))) is None


def test_the_largest_groups_and_those_that_may_be_one(tmp_path):
    write_output(tmp_path)
    write_groups(tmp_path)
    found = read_groups(open_output(str(tmp_path)))
    assert (found.several, found.alone) == (3, 1)
    assert [(group.person, group.size) for group in found.largest] == [(1, 3), (2, 2), (4, 2)]
    assert found.largest[0].faces == [("/a.jpg", 0), ("/b.jpg", 0), ("/c.jpg", 0)]
    # Person 3 is more alike to 1, but a single face is no group that was cut in two.
    assert [(pair.first.person, pair.second.person, round(pair.cosine, 1)) for pair in found.suspects] == [
        (1, 2, 0.4), (1, 4, 0.2)
    ]
    assert found.persons_of(["/e.jpg", "/none.jpg"]) == {("/e.jpg", 0): 2}


def test_the_page_shows_them_with_names_as_text(tmp_path):
    names = [f"{uri}.jpg" for found in MEMBERS.values() for uri, _ in found][:3]
    for name in names:
        write_photo(tmp_path, name, photo(ord(name[0]), 300, 200))
    write_output(tmp_path / "out", aligned(tmp_path, names))
    write_groups(tmp_path / "out", folder=str(tmp_path), name=HOSTILE[1])
    assert main([str(tmp_path / "out"), str(tmp_path / "p.html"), "--photos", "0", "--faces", "1"]) == 0
    page = Page(tmp_path / "p.html")
    for text in (HOSTILE[1], "person 2, 2 faces", "cohesion 0.50", "3 groups of several faces; 1 face alone"):
        assert text in " ".join(page.text.split()), text
    assert len(page.pictures["a.jpg #0"]) == 3          # in its group, and in two pairs
    assert len(page.pictures["c.jpg #0"]) == 1 and "d.jpg #0" not in page.pictures


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [("other", 0, "are of another output"), ("damaged", 2, "is missing or damaged"), ("json", 2, "is damaged")],
)
def test_groups_that_cannot_be_shown(tmp_path, capsys, fault, code, said):
    write_output(tmp_path / "out")
    storage = write_groups(tmp_path / "out", fingerprint="0" * 64 if fault == "other" else None)
    if fault == "damaged":
        storage.write("people/faces-r1.parquet", to_parquet(FACES.empty_table())[:-9])
    if fault == "json":
        storage.write("people/groups.json", b"{")
    assert main([str(tmp_path / "out"), str(tmp_path / "p.html")]) == code
    shown = (tmp_path / "p.html").read_text() if code == 0 else capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
