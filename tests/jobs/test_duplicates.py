"""jobs.duplicates on outputs whose faces are known."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.duplicates import main
from pipeline.people.duplicates import DUPLICATES, Duplicates
from pipeline.people.likeness import unit
from pipeline.people.outputs import open_output
from tests.jobs.blur.outputs import write_output

AXES = np.eye(512, dtype=np.float32)
ANN, BOB = AXES[:2]
ALIKE = 0.8 * ANN + 0.6 * AXES[2]
BOX, OTHER_BOX = (20.0, 20.0, 70.0, 70.0), (45.0, 20.0, 95.0, 70.0)       # of pictures of 100 × 100


def found(capsys):
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out), delimiter="\t")
    assert rows.fieldnames == DUPLICATES.names
    return [(row["kind"], int(row["group"]), row["uri"], row["face_index"], row["cosine"]) for row in rows]


def test_nothing(tmp_path, capsys):
    assert main([write_output(tmp_path / "out", {}).root]) == 0
    said = capsys.readouterr()
    assert said.out == "\t".join(DUPLICATES.names) + "\n" and "nearly equal photos: 0 groups of 0 images" in said.err


def test_equal_files_once_and_near_photos_by_their_faces(tmp_path, capsys):
    images = {
        "/a.jpg": (b"1", [BOX]), "/b.jpg": (b"1", [BOX]), "/c.jpg": (b"2", [BOX]), "/else.jpg": (b"3", [OTHER_BOX]),
        "/none.jpg": (b"4", []), "/stranger.jpg": (b"5", [BOX]),
    }
    root = write_output(tmp_path / "out", images, vectors=np.stack([ANN, ANN, ALIKE, ANN, BOB])).root
    assert main([root]) == 0
    assert found(capsys) == [
        ("equal", 0, "/a.jpg", "", "1.000"), ("equal", 0, "/b.jpg", "", "1.000"),
        ("near", 0, "/a.jpg", "0", "1.000"), ("near", 0, "/c.jpg", "0", "0.800"),
    ]
    assert main([root, "--min-cosine", "0.9"]) == 0
    said = capsys.readouterr()
    assert "near\t" not in said.out and "equal files: 1 groups of 2 images, 0.0 MB of copies" in said.err


@pytest.mark.parametrize(("shift_px", "is_near"), [(0.0, True), (1.2, True), (2.0, False)])
@pytest.mark.parametrize("left", [0.0, 2.9, 3.7, 11.0])
def test_near_is_the_same_wherever_the_face_is(tmp_path, left, shift_px, is_near, capsys):
    boxes = [(left, left, left + 50, left + 50), (left + shift_px, left, left + shift_px + 50, left + 50)]
    images = {f"/{i}.jpg": (b"%d" % i, [box]) for i, box in enumerate(boxes)}
    assert main([write_output(tmp_path / "out", images, vectors=np.stack([ANN, ANN])).root]) == 0
    assert [row[2] for row in found(capsys)] == (["/0.jpg", "/1.jpg"] if is_near else [])


@pytest.mark.parametrize(("kept_pairs", "rows"), [(500, 2048), (1_000_000, 2048), (1_000_000, 7)])
def test_a_video_is_one_group_and_copies_at_the_same_place_are_found(tmp_path, kept_pairs, rows, monkeypatch):
    """Frames are not compared each with each: a long video would take hours, and its pairs much memory."""
    monkeypatch.setattr("pipeline.people.duplicates._KEPT_PAIRS", kept_pairs)
    monkeypatch.setattr("pipeline.people.duplicates._ROWS", rows)
    rng = np.random.default_rng(1)
    frames = unit(unit(rng.standard_normal((1, 512))) + 0.02 * rng.standard_normal((1000, 512)))      # cosine 0.83
    people = unit(rng.standard_normal((100, 512)))
    copies = unit(people + 0.015 * rng.standard_normal((100, 512)))                                   # cosine 0.95
    images = {f"/{i:04}.jpg": (b"%d" % i, [BOX]) for i in range(1200)}
    output = write_output(tmp_path / "out", images, vectors=np.concatenate([frames, people, copies]))
    with Duplicates(open_output(output.root)) as find:
        rows = [(int(row["uri"][1:5]), row["group"]) for row in find().to_pylist() if row["kind"] == "near"]
    groups = dict(rows)
    assert len(rows) == len(groups) and len({groups[i] for i in range(1000)}) == 1
    assert sum(groups.get(i, -1) == groups.get(i + 100, -2) for i in range(1000, 1100)) >= 95
    assert len(set(groups.values())) == 1 + sum(i in groups for i in range(1000, 1100))


def test_one_person_twice_in_a_photo(tmp_path, capsys):
    small = (0.0, 0.0, 30.0, 30.0)
    images = {"/mirror.jpg": (b"1", [BOX, OTHER_BOX, OTHER_BOX, small]), "/single.jpg": (b"2", [OTHER_BOX])}
    vectors = np.stack([ANN, BOB, ALIKE, ANN, ANN])
    root = write_output(tmp_path / "out", images, vectors=vectors).root
    assert main([root]) == 0
    pair = [("same_person", 0, "/mirror.jpg", face, "0.800") for face in ("0", "2")]
    assert [row for row in found(capsys) if row[0] == "same_person"] == pair
    assert main([root, "--same-cosine", "0.81"]) == 0
    assert "one person twice in a photo: 0 groups" in capsys.readouterr().err


def test_the_table_is_on_record(tmp_path):
    storage = write_output(tmp_path / "out", {"/a.jpg": (b"1", []), "/b.jpg": (b"1", [])})
    out = tmp_path / "groups.parquet"
    assert main([storage.root, "--out", str(out), "--same-cosine", "0.4"]) == 0
    table = pq.read_table(out)
    assert table.schema == DUPLICATES and table["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]
    (record,) = storage.list("_derived")
    made = json.loads(storage.read(record.path))
    assert made["place"] == str(out)
    assert made["command"] == f"python -m jobs.duplicates {storage.root} --out {out} --same-cosine 0.4"


@pytest.mark.parametrize("arguments", [
    ["--min-cosine", "2"], ["--out", "."], ["--out", "groups.csv"], ["--same-cosine", "x"],
])
def test_wrong_arguments(tmp_path, arguments):
    root = write_output(tmp_path / "out", {}).root
    try:
        code = main([root, *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
