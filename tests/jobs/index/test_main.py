"""jobs.index, and jobs.search --index."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.erase.__main__ import main as erase
from jobs.index.__main__ import main
from jobs.search.__main__ import main as search
from pipeline.output import derived
from tests.jobs.erase.test_main import ANN, BOB, write_output


@pytest.fixture
def ann(tmp_path):
    """A file with Ann's vector."""
    pq.write_table(pa.table({"embedding": [ANN]}), tmp_path / "ann.parquet")
    return str(tmp_path / "ann.parquet")


def test_it_is_made_searched_updated_and_erased(tmp_path, ann, capsys):
    storage = write_output(tmp_path / "out")
    folder = f"{storage.root}/my index"
    assert main([storage.root, folder]) == 0
    assert "has 6 faces of 4 parts: 16-bit codes, recall at 20: 1.000; segments: 1 new" in capsys.readouterr().err
    assert search([storage.root, ann]) == 0
    without = capsys.readouterr().out
    for more in ([], ["--exact"]):
        assert search([storage.root, ann, "--index", folder, *more]) == 0
        said = capsys.readouterr()
        assert said.out == without and "lacks" not in said.err
    write_output(storage.root, [{"/p/new ann.jpg": [ANN]}])
    assert search([storage.root, ann, "--index", folder]) == 0
    said = capsys.readouterr()
    assert "/p/new ann.jpg" in said.out
    assert "the index lacks 1 of 5 parts" in said.err and f"{storage.root} '{folder}'` adds them" in said.err
    assert main([storage.root, f"{folder}/"]) == 0
    assert "has 7 faces of 5 parts" in capsys.readouterr().err and len(storage.list("my index")) == 3
    [thing] = [thing for _, thing in derived.records(storage) if thing.place == "my index/"]
    assert set(thing.files) == {file.path.removeprefix("my index/") for file in storage.list("my index")}
    assert erase([storage.root, "--uri", "/p/ann.jpg"]) == 0
    assert f"deleted: the index my index/. `python -m jobs.index {storage.root}" in capsys.readouterr().err
    assert storage.list("my index") == []
    assert search([storage.root, ann, "--index", folder]) == 2
    assert "there is no index in" in capsys.readouterr().err


def test_in_a_bucket(bucket, s3_endpoint, ann, capsys):
    query = f"?endpoint_override={s3_endpoint}"
    write_output(f"{bucket.uri}/out")
    places = [f"{bucket.uri}/out{query}", f"{bucket.uri}/i{query}"]
    assert main(places) == 0 and json.loads(bucket.get("i/index.json"))["faces"] == 6
    assert search([places[0], ann, "--index", places[1]]) == 0
    assert "6 matches of 1 probes among 6 faces" in capsys.readouterr().err
    assert erase([places[0], "--uri", "/p/ann.jpg"]) == 0
    assert "deleted: the index" in capsys.readouterr().err
    assert not [key for key in bucket.keys() if key.startswith("i/")]  # noqa: SIM118  (it is a method)


@pytest.mark.parametrize(("arguments", "message"), [
    (["{tmp}/none", "{tmp}/i"], "not an output of jobs.extract"),
    (["{out}", "{out}"], "that .* itself uses; choose another"),
    (["{out}", "{out}/faces"], "that .* itself uses; choose another"),
    (["{out}", "{tmp}"], "holds .*ann.parquet, which is no file of an index"),
    (["{out}", "{tmp}/ann.parquet"], "cannot write .*choose another folder"),
    (["{out}", "https://h/i"], "cannot write to https"),
    (["{other}", "{index}"], "two embedders cannot be compared"),
    (["{elsewhere}", "{index}"], "is of another output"),
])  # fmt: skip
def test_refusals_end_with_2_and_a_sentence(tmp_path, ann, capsys, arguments, message):
    write_output(tmp_path / "out")
    write_output(tmp_path / "elsewhere", [{"/p/bob.jpg": [BOB]}])
    other = write_output(tmp_path / "other")
    begun = json.loads(other.read("output.json"))
    begun["models"]["embedder"]["tensors_sha256"] = "0" * 64
    other.write("output.json", json.dumps(begun).encode())
    assert main([str(tmp_path / "out"), str(tmp_path / "index")]) == 0
    places = {"tmp": tmp_path, **{name: tmp_path / name for name in ("out", "other", "elsewhere", "index")}}
    assert main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said
    if "index" in arguments[1]:
        assert search([arguments[0].format(**places), ann, "--index", str(tmp_path / "index")]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_exact_needs_an_index(ann):
    with pytest.raises(SystemExit, match=r"^2$"):
        search(["out", ann, "--exact"])
