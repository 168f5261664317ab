from __future__ import annotations

import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.input.manifest_folder import (
    MANIFEST_JSON,
    ManifestError,
    ManifestState,
    PartWriter,
    check_complete,
    claim,
    finish,
    gaps,
    merged,
    read_coverage,
    read_state,
    write_state,
)
from pipeline.input.names import InputError
from pipeline.input.rows import Stretch, listing_table
from pipeline.schemas import LISTING
from pipeline.storage import open_storage

ID = "0123abcd"


def state(**changes):
    values = {"source": "s3://b/p/", "revision": "", "all_files": False, "command": "python -m jobs.manifest …"}
    return ManifestState(**values | changes)


def stretch(after, until, *names, skipped=None):
    skipped = skipped or {}
    return Stretch((after, until), listing_table({"uri": names}), len(names) + sum(skipped.values()), skipped)


def write(storage, *stretches, listing_id=ID):
    """Write the stretches as one part."""
    writer = PartWriter(storage, listing_id, lambda: None)
    for each in stretches:
        writer.add(each)
    writer.flush()


def uris(storage):
    return sorted(pyarrow.dataset.dataset(storage.root).to_table()["uri"].to_pylist())


@pytest.fixture(params=["disk", "bucket"])
def storage(request, tmp_path):
    if request.param == "disk":
        return open_storage(str(tmp_path / "out.parquet"))
    return open_storage(f"{request.getfixturevalue('bucket').uri}/lists/out.parquet")


@pytest.fixture
def folder(tmp_path):
    return open_storage(str(tmp_path / "out.parquet"))


# --- spans


@pytest.mark.parametrize(
    ("spans", "together", "left_out"),
    [
        ([], [], [("", None)]),
        ([("", None)], [("", None)], []),
        ([("", "a")], [("", "a")], [("a", None)]),
        ([("b", None), ("", "b")], [("", None)], []),
        ([("b", "c"), ("a", "b"), ("d", "e")], [("a", "c"), ("d", "e")], [("", "a"), ("c", "d"), ("e", None)]),
        ([("b", "b\0"), ("b\0", None)], [("b", None)], [("", "b")]),
    ],
)
def test_spans(spans, together, left_out):
    assert merged(spans) == together and gaps(together) == left_out


@given(st.sets(st.text(max_size=3)), st.data())
def test_spans_and_their_gaps_cover_everything(cuts, data):
    edges = ["", *sorted(cuts - {""}), None]
    spans = [(after, until) for after, until in pairwise(edges)]
    chosen = [span for span in spans if data.draw(st.booleans())]
    left_out = gaps(merged(chosen))
    assert merged([*chosen, *left_out]) == [("", None)]
    assert sorted(left_out) == merged([span for span in spans if span not in chosen])


# --- parts


def test_no_parts(storage):
    write(storage)
    coverage = read_coverage(storage, ID)
    assert (coverage.gaps, coverage.parts, coverage.rows, coverage.seen) == ([("", None)], 0, 0, 0)


def test_parts_say_what_they_cover(storage):
    write(storage, stretch("m", "o", "n"), stretch("c", "e", "d", skipped={"hidden": 2}), stretch("", "c", "a", "b"))
    write(storage, stretch("o", None, skipped={"hidden": 1, "old": 5}))
    coverage = read_coverage(storage, ID)
    assert coverage.gaps == [("e", "m")]
    assert (coverage.parts, coverage.rows, coverage.seen) == (2, 4, 12)
    assert coverage.skipped == {"hidden": 3, "old": 5}


def test_a_part_has_the_columns_of_a_listing_in_the_order_of_keys(folder):
    write(folder, stretch("m", "o", "n"), stretch("", "c", "a", "b"))
    [part] = folder.list("")
    table = pq.read_table(folder.open(part.path))
    assert table.schema == LISTING and table["uri"].to_pylist() == ["a", "b", "n"]
    assert part.path.startswith(f"part-{ID}-")


def test_keys_of_any_kind_are_kept(folder):
    for key in ["\0", "new\nline", "é😀", '"', "\U0010ffff"]:
        write(folder, stretch(key, key + "\0", key))
    assert gaps(merged([(key, key + "\0") for key in uris(folder)])) == read_coverage(folder, ID).gaps


def test_a_part_is_written_when_there_are_enough_rows(folder):
    writer = PartWriter(folder, ID, lambda: None, part_rows=3, part_age_s=1000)
    for i, parts in enumerate([0, 0, 1, 1, 1, 2]):
        writer.add(stretch(f"{i}", f"{i + 1}", f"{i}x"))
        assert len(folder.list("")) == parts
    writer.add(stretch("6", "7", "6x"))
    writer.flush()
    writer.flush()
    assert len(folder.list("")) == 3 and uris(folder) == [f"{i}x" for i in range(7)]


def test_a_part_is_written_when_time_has_passed(folder):
    writer = PartWriter(folder, ID, lambda: None, part_rows=1000, part_age_s=0)
    writer.add(stretch("", "b", skipped={"hidden": 9}))
    assert read_coverage(folder, ID).gaps == [("b", None)]


def test_nothing_is_written_without_the_lease(folder):
    def lost():
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        PartWriter(folder, ID, lost, part_rows=1).add(stretch("", None, "a"))
    assert folder.list("") == []


def test_parts_of_another_listing_are_deleted(storage):
    write(storage, stretch("", None, "old"), listing_id="ffffffff")
    write(storage, stretch("", "m", "a"))
    assert read_coverage(storage, ID).gaps == [("m", None)]
    assert len(storage.list("")) == 1


@pytest.mark.parametrize(
    "second", [("a", "b"), ("", "b"), ("", "a\0"), ("b", "c"), ("b", None), ("aa", "ab"), ("", None)]
)
def test_a_part_that_overlaps_another_is_listed_again(folder, second):
    write(folder, stretch("a", "c", "b"))
    write(folder, stretch(*second, "x"))
    coverage = read_coverage(folder, ID)
    assert coverage.parts == 1 and len(folder.list("")) == 1
    [kept] = [("a", "c")] if uris(folder) == ["b"] else [second]
    assert coverage.gaps == gaps([kept])


def test_adjacent_spans_do_not_overlap(folder):
    write(folder, stretch("a", "b"), stretch("c", None))
    write(folder, stretch("b", "c"), stretch("", "a"))
    assert read_coverage(folder, ID).gaps == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"none"])
def test_a_damaged_part_is_named(folder, content):
    folder.write(f"part-{ID}-{'0' * 16}.parquet", content)
    with pytest.raises(ManifestError, match=rf"out.parquet/part-{ID}-0+.parquet is damaged .*delete it"):
        read_coverage(folder, ID)


def test_a_part_without_our_metadata_is_named(folder):
    pq.write_table(pa.table({"uri": ["a"]}), sink := pa.BufferOutputStream())
    folder.write(f"part-{ID}-{'0' * 16}.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(ManifestError, match="is damaged"):
        read_coverage(folder, ID)


def test_other_parquet_files_are_refused(folder):
    folder.write("mine.parquet", b"x")
    with pytest.raises(ManifestError, match=r"mine.parquet does not belong to this manifest: move it away"):
        read_coverage(folder, ID)


# --- the state


def test_a_listing_is_begun_and_resumed(storage):
    begun = claim(storage, state(), overwrite=False)
    again = claim(storage, state(command="with other --threads"), overwrite=False)
    assert again == begun and again.finished is None
    other = claim(storage, state(), overwrite=True)
    assert other.id != begun.id and read_state(storage) == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "s3://b/q/"}, "s3://b/p/, images; now s3://b/q/, images"),
        ({"all_files": True}, "s3://b/p/, images; now s3://b/p/, all files"),
        ({"revision": "f" * 64}, "now s3://b/p/ as of sha256 ffffffffffff, images"),
    ],
)
def test_another_listing_is_refused(folder, changes, message):
    claim(folder, state(), overwrite=False)
    with pytest.raises(ManifestError, match=message):
        claim(folder, state(**changes), overwrite=False)
    assert claim(folder, state(**changes), overwrite=True).is_same_listing(state(**changes))


def test_a_folder_with_other_parquet_files_is_not_written(folder):
    folder.write("other.parquet", b"x")
    with pytest.raises(ManifestError, match=r"holds Parquet files but no _manifest.json"):
        claim(folder, state(), overwrite=False)


def test_a_damaged_state_is_refused(folder):
    for content in (b"", b"[]", b"{", b'{"source": "x"}', b'{"unknown": 1}'):
        folder.write(MANIFEST_JSON, content)
        with pytest.raises(ManifestError, match="is damaged; list again with --overwrite"):
            claim(folder, state(), overwrite=False)
        with pytest.raises(InputError, match="is damaged"):
            check_complete(folder)


def test_readers_refuse_an_unfinished_manifest(storage):
    assert check_complete(storage) is None
    begun = claim(storage, state(command="python -m jobs.manifest s3://b/p/ out.parquet"), overwrite=False)
    with pytest.raises(InputError, match=r"out.parquet is unfinished; finish it first with: python -m jobs.manifest"):
        check_complete(storage)
    write(storage, stretch("", None, "a", skipped={"hidden": 2}), listing_id=begun.id)
    write_state(storage, finish(begun, read_coverage(storage, begun.id)))
    complete = check_complete(storage)
    assert (complete.rows, complete.seen, complete.skipped) == (1, 3, {"hidden": 2}) and complete.finished


def test_a_file_has_no_state(tmp_path):
    (tmp_path / "out.parquet").write_bytes(b"")
    assert read_state(open_storage(str(tmp_path / "out.parquet"))) is None


def test_other_tools_read_only_the_parts(folder):
    begun = claim(folder, state(), overwrite=False)
    write(folder, stretch("", None, "a"), listing_id=begun.id)
    assert uris(folder) == ["a"]
    assert json.loads(folder.read(MANIFEST_JSON))["source"] == "s3://b/p/"
