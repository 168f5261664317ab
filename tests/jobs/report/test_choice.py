import pyarrow as pa
import pytest

from jobs.report.choice import Choice

SCHEMA = pa.schema([("uri", pa.string()), ("n_faces", pa.int32())])


def rows(names, faces=2):
    return pa.table({"uri": list(names), "n_faces": [faces] * len(names)}, schema=SCHEMA)


def chosen(tables, photos, faces):
    choice = Choice(SCHEMA, photos, faces)
    for table in tables:
        choice.add(table)
    return choice.table["uri"].to_pylist()


NAMES = [f"/p/{i}.jpg" for i in range(200)]


@pytest.mark.parametrize(
    ("photos", "faces", "count"), [(0, 0, 0), (3, 0, 3), (0, 7, 3), (5, 7, 5), (1, 400, 200), (500, 0, 200)]
)
def test_as_many_as_asked_for(photos, faces, count):
    assert len(chosen([rows(NAMES)], photos, faces)) == count


@pytest.mark.parametrize("faces", [0, 40])
def test_of_photos_without_faces_no_more_are_held_than_asked_for(faces):
    choice = Choice(SCHEMA, 5, faces)
    for part in range(50):
        choice.add(rows([f"/p/{part}/{i}.jpg" for i in range(100)], faces=0))
    assert choice.table.num_rows == 5


def test_the_order_of_the_parts_does_not_matter():
    parts = [rows(NAMES[i : i + 7]) for i in range(0, 200, 7)]
    assert chosen(parts, 5, 40) == chosen(reversed(parts), 5, 40) == chosen([rows(NAMES)], 5, 40)


def test_a_growing_output_keeps_most_of_its_photos():
    before, after = chosen([rows(NAMES)], 50, 0), chosen([rows(NAMES), rows([f"/new/{i}" for i in range(20)])], 50, 0)
    assert len(set(before) & set(after)) > 35 and set(before) != set(NAMES[:50])


def test_an_image_in_two_parts_is_chosen_once():
    assert chosen([rows(["/a", "/b"]), rows(["/a"])], 5, 0).count("/a") == 1
