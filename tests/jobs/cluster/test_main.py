"""jobs.cluster on outputs of the shipped models."""

import json
import re
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs.cluster.__main__ import argument_parser, cluster_output, main
from jobs.erase.__main__ import main as erase
from pipeline.output import claim
from pipeline.output.lease import Lease
from pipeline.people.outputs import open_output
from pipeline.people.tables import FACES, PEOPLE, read_made, read_tables
from pipeline.storage import open_storage
from tests.jobs.erase.test_main import ANN, BOB, write_output
from tests.pipeline.people.test_grouping import commit
from tests.support.failing_storage import Crash, DyingStorage

EVE = np.eye(512, dtype=np.float32)[2]


def tables(root, folder="people"):
    storage = open_storage(str(root))
    return read_tables(storage, folder, read_made(storage, folder))


def persons(root, folder="people"):
    """The person of each face, by image and index."""
    return {(row["uri"], row["face_index"]): row["person"] for row in tables(root, folder)[0].to_pylist()}


def rewrite(storage):
    """An output that goes on: another part."""
    commit(storage, {"/p/new.jpg": [EVE], "/p/new bob.jpg": [BOB]}, embedder=embedder_of(storage))


def embedder_of(storage):
    path = storage.list("faces")[0].path
    return pq.read_table(pa.BufferReader(storage.read(path)))["embedder"][0].as_py()


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_who_is_who_on_disk_and_in_a_bucket(where, request, tmp_path, capsys):
    root, query = str(tmp_path / "out"), ""
    if where == "s3":
        root = f"{request.getfixturevalue('bucket').uri}/out"
        query = f"?endpoint_override={request.getfixturevalue('s3_endpoint')}"
    storage = write_output(root)
    assert main([root + query]) == 0
    faces, people = tables(root)
    assert (faces.schema, people.schema) == (FACES, PEOPLE)
    assert faces.to_pylist() == [
        {"uri": uri, "face_index": face, "person": person, "cosine_to_person": pytest.approx(cosine, abs=1e-3),
         "is_core": True}
        for uri, face, person, cosine in (
            ("/p/ann alone.jpg", 0, 1, 1), ("/p/ann.jpg", 0, 1, 1), ("/p/bob.jpg", 0, 2, 0.978),
            ("/p/both.jpg", 0, 2, 0.978), ("/p/both.jpg", 1, 1, 1), ("/p/like ann.jpg", 0, 2, 0.907),
        )
    ]
    assert [(row["person"], row["size"], row["n_core"], row["nearest_person"]) for row in people.to_pylist()] == [
        (1, 3, 3, None), (2, 3, 3, None)
    ]
    said = capsys.readouterr().err
    assert "6 faces: 6 are of 2 people with several, 0 are alone; 0 were too small" in said and root in said
    (record,) = [json.loads(storage.read(file.path)) for file in storage.list("_derived") if "groups" in file.path]
    assert (record["kind"], record["place"], len(record["files"])) == ("groups", "people/", 3)


@pytest.mark.parametrize(("parts", "faces"), [([], 0), ([{"/p/none.jpg": []}], 0), ([{"/p/ann.jpg": [ANN]}], 1)])
def test_outputs_of_no_face_and_of_one(tmp_path, capsys, parts, faces):
    write_output(tmp_path / "out", parts)
    assert main([str(tmp_path / "out"), "--to", str(tmp_path / "people")]) == 0
    assert f"{faces} faces: 0 are of 0 people with several, {faces} are alone" in capsys.readouterr().err
    assert [len(table) for table in tables(tmp_path, "people")] == [faces, faces]


def test_an_output_that_has_grown(tmp_path):
    storage = write_output(tmp_path)
    assert main([str(tmp_path)]) == 0
    before = persons(tmp_path)
    rewrite(storage)
    assert main([str(tmp_path)]) == 0
    now = persons(tmp_path)
    assert {face: now[face] for face in before} == before
    assert now["/p/new bob.jpg", 0] == before["/p/bob.jpg", 0] and now["/p/new.jpg", 0] == 3
    assert len(storage.list("people")) == 3                                  # the old tables are gone
    storage.delete(claim.RUN_JSON)                                           # while a run goes on
    assert main([str(tmp_path)]) == 0 and persons(tmp_path) == now


def test_a_kill_leaves_the_old_tables_or_the_new(tmp_path):
    storage = write_output(tmp_path)
    assert main([str(tmp_path)]) == 0
    old = persons(tmp_path)
    rewrite(storage)
    seen = set()
    for step in range(1, 60):
        output = replace(open_output(str(tmp_path)), storage=DyingStorage(storage, step))
        try:
            cluster_output(argument_parser().parse_args([str(tmp_path)], Namespace(again="again")), output)
        except Crash:
            pass
        else:
            break
        found = persons(tmp_path)
        assert found == old or set(found) == {*old, ("/p/new.jpg", 0), ("/p/new bob.jpg", 0)}
        seen.add(len(found))
    assert seen == {6, 8} and len(storage.list("people")) == 3


def test_labels_fix_who_is_who_and_say_how_good_the_groups_are(tmp_path, capsys, bucket, s3_endpoint):
    write_output(tmp_path)
    bucket.put("labels.csv", b"uri,face_index,name\n/p/ann.jpg,0,Ann\n/p/like ann.jpg,0,Ann\n/p/bob.jpg,0,Bob\n"
                             b"/p/x.jpg,0,X\n")
    assert main([str(tmp_path), "--labels", f"{bucket.uri}/labels.csv?endpoint_override={s3_endpoint}"]) == 0
    now = persons(tmp_path)
    assert now["/p/like ann.jpg", 0] == now["/p/ann.jpg", 0] != now["/p/bob.jpg", 0]
    names = {row["person"]: row["name"] for row in tables(tmp_path)[1].to_pylist()}
    assert names[now["/p/ann.jpg", 0]] == "Ann" and names[now["/p/bob.jpg", 0]] == "Bob"
    said = capsys.readouterr().err
    assert "3 faces of 2 people have names; 1 rows are no faces of the output" in said
    assert "BCubed F 0.6667 (precision 0.6667, recall 0.6667), pairwise F 0.0000" in said


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_without_a_name_say_nothing(tmp_path, capsys, suffix):
    """A table of all faces in which only some have a name."""
    write_output(tmp_path)
    rows = [("/p/ann.jpg", 0, "Ann"), ("/p/bob.jpg", 0, ""), ("/p/like ann.jpg", 0, " "), ("/p/x.jpg", 0, "X")]
    table = pa.table([list(column) for column in zip(*rows, strict=True)], ["uri", "face_index", "name"])
    labels = tmp_path / f"labels.{suffix}"
    (pq.write_table if suffix == "parquet" else pa.csv.write_csv)(table, labels)
    assert main([str(tmp_path), "--labels", str(labels)]) == 0
    said = capsys.readouterr().err
    assert "1 faces of 1 people have names; 1 rows are no faces of the output; 2 rows have no name" in said
    assert [row["name"] for row in tables(tmp_path)[1].to_pylist() if row["name"] is not None] == ["Ann"]


def test_faces_of_one_photo(tmp_path):
    write_output(tmp_path, [{"/p/twins.jpg": [ANN, ANN], "/p/ann.jpg": [ANN]}])
    assert main([str(tmp_path)]) == 0 and sorted(persons(tmp_path).values()) == [1, 1, 2]
    assert main([str(tmp_path), "--same-photo"]) == 0 and set(persons(tmp_path).values()) == {1}


def test_an_erasure_finds_the_tables(tmp_path, capsys):
    write_output(tmp_path)
    assert main([str(tmp_path), "--to", str(tmp_path / "mine")]) == 0
    assert erase([str(tmp_path), "--uri", "/p/ann.jpg"]) == 0
    assert not [path for path in (tmp_path / "mine").iterdir() if path.suffix == ".parquet"]
    assert not list((tmp_path / "_derived").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "this is not an output of jobs.extract"),
        (["{out}", "--labels", "{folder}/gone.csv"], "cannot read .*gone.csv: No such file .*; check the path"),
        (["{out}", "--labels", "{folder}/other.csv"], "none of its 1 rows with a name is a face of the output"),
        (["{out}", "--labels", "{folder}/twice.csv"], "face 0 of /p/ann.jpg has two names"),
        (["{out}", "--labels", "{folder}/word.csv"], "face_index must be whole numbers"),
        (["{out}", "--to", "{out}/faces"], "is a place that .* itself uses; choose another"),
        (["{out}", "--to", "{folder}/other.csv"], "the tables cannot be written: .*; give another folder with --to"),
        (["{out}", "--to", "{folder}/others"], "has the people of another output"),
        (["{broken}"], "part .* is damaged"),
        (["{busy}"], "is writing"),
    ],
)
def test_refusals_end_with_2_and_a_sentence(tmp_path, capsys, arguments, message):
    places = {"folder": tmp_path} | {name: tmp_path / name for name in ("out", "broken", "busy")}
    write_output(places["out"])
    for name, row in (("other", "/q.jpg,0,A"), ("twice", "/p/ann.jpg,0,A\n/p/ann.jpg,0,B"), ("word", "/p/ann.jpg,x,A")):
        (tmp_path / f"{name}.csv").write_text(f"uri,face_index,name\n{row}\n")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/groups.json").write_text(json.dumps(
        {"run_id": "r", "output": "f", "next_person": 1, "settings": {}, "counts": {}}
    ))
    broken = write_output(places["broken"])
    path = broken.list("faces")[0].path
    broken.write(path, broken.read(path)[:-100])
    busy = write_output(places["busy"])
    with Lease.acquire(busy, "r9"):
        assert main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["out", "--min-cosine", "0"], ["out", "--min-cosine", "1.1"]])
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)


@pytest.mark.parametrize(("cosine", "people"), [("0.5", 2), ("0.99", 3)])
def test_the_least_cosine(tmp_path, cosine, people):
    write_output(tmp_path)
    assert main([str(tmp_path), "--min-cosine", cosine]) == 0
    assert len(set(persons(tmp_path).values())) == people
