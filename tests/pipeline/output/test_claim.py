import json

import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.output import claim as output
from pipeline.output import ledger
from pipeline.output.claim import Claim
from pipeline.schemas import IMAGES, LATER_COLUMNS
from pipeline.settings import RowSettings, fingerprint, fingerprinted
from pipeline.storage import open_storage

COVERED = fingerprinted(RowSettings(), {"detector": {"tensors_sha256": "aa"}})
OTHER = fingerprinted(RowSettings(min_score=0.7), {"detector": {"tensors_sha256": "aa"}})


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"))


def write_part(storage, uri):
    images = pa.Table.from_pylist([{"uri": uri, "status": "ok", "run_id": "r"}], schema=IMAGES)
    name = ledger.part_name("part", "r", [uri])
    ledger.write_pair(storage, name, pa.table({"uri": [uri]}), images, lambda: None)
    return name


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"OUTPUT cannot be written: .*check its path"):
        output.take_lease(open_storage(str(tmp_path / "out")), "r", "command", print)


def test_parquet_files_that_no_run_wrote_are_refused(storage):
    output.refuse_foreign_tables(storage)
    write_part(storage, "a")
    storage.write("faces/notes.txt", b"")
    output.refuse_foreign_tables(storage)
    for path in ("images/mine.parquet", "images/more.parquet"):
        storage.write(path, b"")
    with pytest.raises(OutputError, match=r"holds images/mine\.parquet and 1 more, which no run wrote.* move it away"):
        output.refuse_foreign_tables(storage)


def test_a_new_output_stores_the_fingerprint_and_keeps_it(storage):
    expected = Claim(fingerprint(COVERED), LATER_COLUMNS)
    assert output.claim(storage, COVERED) == output.claim(storage, COVERED) == expected
    assert json.loads(storage.read("output.json"))["settings"]["min_score"] == RowSettings().min_score


def test_another_fingerprint_is_refused_with_both_shown(storage):
    output.claim(storage, COVERED)
    with pytest.raises(OutputError) as refused:
        output.claim(storage, OTHER)
    for part in (fingerprint(COVERED)[:12], fingerprint(OTHER)[:12], "settings.min_score: 0.7 now", "--overwrite"):
        assert part in str(refused.value)


def test_parts_without_output_json_are_refused(storage):
    write_part(storage, "a")
    for _ in range(2):      # a refusal must not write an output.json that would let the next claim pass
        with pytest.raises(OutputError, match=r"no output\.json"):
            output.claim(storage, COVERED)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{\"fingerprint\""])
def test_a_damaged_output_json_is_refused(storage, content):
    storage.write("output.json", content)
    with pytest.raises(OutputError, match="damaged"):
        output.claim(storage, COVERED)


def test_clear_removes_what_runs_wrote_and_nothing_else(storage, tmp_path):
    output.claim(storage, COVERED)
    write_part(storage, "a")
    storage.write("run.json", b"{}")
    output.set_run_aside(storage)
    storage.write("run.json", b"{}")
    storage.write("notes.txt", b"mine")
    storage.write("_erased.parquet", b"stays")
    output.append_audit(storage, {"event": "erased"})
    output.clear(storage)
    assert [file.path for file in storage.list("")] == ["_audit.jsonl", "_erased.parquet", "notes.txt"]
    assert ledger.committed_parts(storage) == []
    assert output.claim(storage, OTHER).fingerprint == fingerprint(OTHER)


def test_recover_removes_halves(storage):
    name = write_part(storage, "a")
    storage.delete(f"images/{name}.parquet")
    output.recover(storage)
    assert storage.list("faces") == []


def test_finished(storage):
    assert not output.is_finished(storage)
    storage.write("run.json", b"{}")
    assert output.is_finished(storage)


def test_run_json_is_moved_away_and_put_back(storage):
    assert output.set_run_aside(storage) is None                  # an unfinished output stays one
    storage.write("run.json", b'{"run_id": "r1"}')
    for _ in range(2):                                            # twice, as after a crash
        assert output.set_run_aside(storage) == {"run_id": "r1"}
        assert not output.is_finished(storage)
    output.put_run_back(storage, {"run_id": "r1", "output": {}})
    assert [file.path for file in storage.list("")] == ["run.json"]
    assert json.loads(storage.read("run.json")) == {"run_id": "r1", "output": {}}


def test_mark_unfinished_deletes_a_run_json_that_was_moved_away(storage):
    storage.write("run.json", b"{}")
    output.set_run_aside(storage)                                 # an erasure is killed here, then a run begins
    output.mark_unfinished(storage)
    assert output.set_run_aside(storage) is None


def test_the_audit_gets_a_line_per_entry(storage):
    for number in range(3):
        output.append_audit(storage, {"number": number})
    lines = storage.read("_audit.jsonl").decode().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]


def test_an_output_keeps_the_columns_that_it_was_begun_with(storage):
    """Version 0.1.0 named none."""
    before = fingerprinted(RowSettings(long_pictures="whole"), {})
    storage.write("output.json", json.dumps({"fingerprint": fingerprint(before), **before}).encode())
    assert output.claim(storage, before) == Claim(fingerprint(before), ())
