"""What is made of an output is on record before it is there, and an erasure follows the records."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.output import claim, derived
from pipeline.output.derived import DROP_ROWS, Derived, Maker, Source
from pipeline.output.derived_erasure import erase_derived
from pipeline.output.lease import LeaseLost
from pipeline.output.ledger import to_parquet
from pipeline.storage import open_storage
from tests.support.failing_storage import Crash, DyingStorage

ANN = pa.array(["/p/ann.jpg"])
GROUPS = to_parquet(pa.table({"uri": ["/p/ann.jpg", "/p/bob.jpg"], "person": [1, 2]}))


@pytest.fixture
def output(tmp_path):
    return open_storage(str(tmp_path / "out"))


def maker(*outputs):
    return Maker([Source(output, lambda: None, "print", {"embedder": "net@123"}) for output in outputs])


def known(output):
    return [thing for _, thing in derived.records(output)]


def erase(output, have_rows=True):
    """The places that were changed, and what is left."""
    done = erase_derived(output, ANN, have_rows=have_rows)
    return [thing.place for thing in done.changed], list(done.left)


def test_without_outputs_there_is_no_record(tmp_path, output):
    maker().write(Derived("page", str(tmp_path / "deep/p.html"), "make"), {"p.html": b"page"})
    assert (tmp_path / "deep/p.html").read_bytes() == b"page"
    assert known(output) == [] and erase(output) == ([], [])


def test_a_record_says_what_it_is_and_how_it_is_made_again(output):
    people = Derived("groups", f"{output.root}/people/", "make", DROP_ROWS)
    maker(output).write(people, {"g.parquet": GROUPS, "x": b"x"})
    assert output.read("people/g.parquet") == GROUPS and output.read("people/x") == b"x"
    [thing] = known(output)
    assert (thing.place, thing.in_output, thing.command, thing.on_erase) == ("people/", True, "make", DROP_ROWS)
    assert (thing.fingerprint, thing.models) == ("print", {"embedder": "net@123"})
    assert {name: len(digests) for name, digests in thing.files.items()} == {"g.parquet": 1, "x": 1}


def test_one_file_of_two_outputs_is_on_record_in_both(tmp_path, output):
    other = open_storage(str(tmp_path / "other"))
    maker(output, other).write(Derived("page", f"{other.root}/p.html", "make"), {"p.html": b"page"})
    assert [thing.place for thing in known(output) + known(other)] == [f"{other.root}/p.html", "p.html"]
    assert erase(output) == ([f"{other.root}/p.html"], []) and other.list("") == []
    assert erase(other) == ([], []) and known(other) == []


@pytest.mark.parametrize("place", [
    "/", "/faces/x.html", "/images/", "/_todo/x", "/_x.html", "/run.json", "/output.json",
])
def test_places_of_the_output_itself_are_refused(output, place):
    with pytest.raises(OutputError, match=r"is a place that .* itself uses; choose another"):
        maker(output).write(Derived("page", f"{output.root}/x/..{place}", "make"), {"x": b""})
    assert output.list("") == []


def test_a_crash_at_any_step_leaves_nothing_without_a_record(output):
    page = Derived("page", f"{output.root}/p.html", "make")
    for old in (b"first", b"second"):
        for survives in range(3):
            with pytest.raises(Crash):
                maker(DyingStorage(output, survives)).write(page, {"p.html": old + str(survives).encode()})
            assert not output.list("") or "p.html" in known(output)[0].files
        maker(output).write(page, {"p.html": old})
    assert erase(output) == (["p.html"], []) and output.list("") == known(output) == []


def test_the_lease_is_checked_before_anything_is_written(output):
    def lost():
        raise LeaseLost

    with pytest.raises(LeaseLost):
        Maker([Source(output, lost, "", {})]).write(Derived("page", f"{output.root}/p.html", "make"), {"p.html": b""})
    assert output.list("") == output.list(derived.FOLDER) == []


def test_files_that_are_needed_no_more(output):
    index = Derived("index", f"{output.root}/index/", "make")
    maker(output).write(index, {"1": b"1", "2": b"2"})
    maker(output).delete(index, ["1", "gone"])
    assert [file.path for file in output.list("index")] == ["index/2"] and list(known(output)[0].files) == ["2"]


def test_rows_are_dropped_and_the_rest_stays(tmp_path, output):
    for place in (output.root, tmp_path):
        people = Derived("groups", f"{place}/people/", "make", DROP_ROWS)
        maker(output).write(people, {"g.parquet": GROUPS, "x": b"odd"})
    for left in (1, 1):         # the second time there is nothing to do
        erase(output)
        for place in (tmp_path / "out/people", tmp_path / "people"):
            assert pq.read_table(place / "g.parquet").to_pylist() == [{"uri": "/p/bob.jpg", "person": 2}]
            assert len(list(place.iterdir())) == left
    assert len(known(output)) == 2 and erase(output) == ([], [])


def test_what_has_only_rows_stays_when_none_is_erased(output):
    maker(output).write(Derived("index", f"{output.root}/index/", "make"), {"i": b"i"})
    maker(output).write(Derived("page", f"{output.root}/p.html", "make", rows_only=False), {"p.html": b"p"})
    assert erase(output, have_rows=False) == (["p.html"], [])
    assert [thing.place for thing in known(output)] == ["index/"]


def test_elsewhere_only_what_is_as_it_was_written_is_deleted(tmp_path, output):
    for name in ("a.html", "b.html", "c.html"):
        maker(output).write(Derived("page", str(tmp_path / name), "make"), {name: b"page"})
    (tmp_path / "b.html").write_bytes(b"my notes")
    (tmp_path / "c.html").unlink()
    changed, left = erase(output)
    assert changed == [f"{tmp_path}/a.html"] and not (tmp_path / "a.html").exists()
    assert left == [f"page {tmp_path}/b.html, because b.html is no longer what was written there"]
    assert [thing.place for thing in known(output)] == [f"{tmp_path}/b.html"]


def test_another_machine_and_a_place_that_cannot_be_read_are_named(tmp_path, output):
    maker(output).write(Derived("page", str(tmp_path / "a.html"), "make"), {"a.html": b"page"})
    (tmp_path / "a.html").unlink()
    [thing] = known(output)
    derived.write_record(output, replace(thing, host="other"), thing.files)
    assert erase(output) == ([], [f"page {tmp_path}/a.html, because it was written on another machine, other"])
    derived.write_record(output, replace(thing, place=f"{tmp_path}/out/a.html/x"), thing.files)
    (tmp_path / "out/a.html").write_bytes(b"a file where the folder should be")
    assert any("Not a directory" in why for why in erase(output)[1]) and len(known(output)) == 2


@pytest.mark.parametrize("change", [
    {"files": {"../../mine": ["0" * 64]}}, {"files": ["mine"]}, {"files": {"mine": ["no"]}}, {"files": {"mine": 3}},
    {"place": "../mine"}, {"place": "/mine"}, {"place": "x/../../mine"}, {"place": "faces/mine"}, {"place": "run.json"},
    {"on_erase": "explode"}, {"store": {"no": 1}}, {"place": 5}, {"extra": 1},
])  # fmt: skip
def test_a_damaged_record_deletes_nothing_and_is_named(tmp_path, output, change):
    maker(output).write(Derived("page", f"{output.root}/p.html", "make"), {"p.html": b"page"})
    [file] = output.list(derived.FOLDER)
    output.write(file.path, json.dumps(json.loads(output.read(file.path)) | change).encode())
    for path in ("mine", "faces/mine", "run.json"):
        output.write(path, b"mine")
    (tmp_path / "mine").write_bytes(b"mine")
    changed, [left] = erase(output)
    assert changed == [] and left == f"what {output.root}/{file.path} names, because this record is damaged"
    assert output.read("mine") == output.read("faces/mine") == output.read("run.json") == b"mine"
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_overwrite_deletes_what_is_in_the_output_and_remembers_the_rest(tmp_path, output):
    for place in (output.root, tmp_path):
        maker(output).write(Derived("page", f"{place}/p.html", "make"), {"p.html": b"page"})
    claim.clear(output)
    assert output.list("") == [] and [thing.place for thing in known(output)] == [f"{tmp_path}/p.html"]
    assert (tmp_path / "p.html").exists() and erase(output) == ([f"{tmp_path}/p.html"], [])


def test_in_buckets(bucket, s3_endpoint):
    output = open_storage(f"{bucket.uri}/out")
    for place in (f"{bucket.uri}/out/people/", f"{bucket.uri}/else/?endpoint_override={s3_endpoint}"):
        maker(output).write(Derived("groups", place, "make"), {"g.parquet": GROUPS})
    assert {(thing.place, thing.in_output) for thing in known(output)} == {
        ("people/", True), (f"{bucket.uri}/else/", False)
    }
    assert bucket.get("out/people/g.parquet") == bucket.get("else/g.parquet") == GROUPS
    assert sorted(erase(output)[0]) == sorted(["people/", f"{bucket.uri}/else/"])
    assert output.list("people") == known(output) == [] and not open_storage(f"{bucket.uri}/else").list("")
