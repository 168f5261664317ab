import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output import ledger
from pipeline.output.lease import LeaseLost
from pipeline.schemas import IMAGES
from pipeline.storage import open_storage
from tests.support.failing_storage import Crash, DyingStorage, StorageWrapper

PART = ledger.part_name("part", "r1", ["a"])


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"))


def images(*uris, status="ok", run_id="r1"):
    rows = [{"uri": uri, "status": status, "run_id": run_id} for uri in uris]
    return pa.Table.from_pylist(rows, schema=IMAGES.with_metadata({"facelake.fingerprint": "f"}))


def faces(*uris):
    return pa.table({"uri": pa.array(uris, pa.string()), "x1": pa.array([1.0] * len(uris), pa.float32())})


def write(storage, kind, *uris, run_id="r1", status="ok"):
    name = ledger.part_name(kind, run_id, uris)
    ledger.write_pair(storage, name, faces(*uris, *uris), images(*uris, status=status, run_id=run_id), lambda: None)
    return name


def lost_at(call, watch=lambda: None):
    """A check of the lease that fails at its n-th call."""
    calls = []

    def check():
        calls.append(None)
        watch()
        if len(calls) == call:
            raise LeaseLost("another run has taken over")

    return check


def uris_in(storage, folder):
    found = []
    for file in storage.list(folder):
        found += pq.read_table(pa.BufferReader(storage.read(file.path)))["uri"].to_pylist()
    return sorted(found)


def test_an_empty_output(storage):
    table = ledger.read_ledger(storage)
    assert len(table) == 0 and table.column_names == [*ledger.LEDGER_COLUMNS, "part"]
    assert ledger.committed_parts(storage) == [] and ledger.remove_halves(storage) == 0
    assert ledger.repair_duplicates(storage, "r1") == 0 and not ledger.finish_rewrite(storage)


def test_the_name_depends_only_on_the_content():
    assert ledger.part_name("part", "r", ["b", "a"]) == ledger.part_name("part", "r", ["a", "b"])
    assert ledger.part_name("part", "r", ["a"]) != ledger.part_name("part", "r", ["b"])
    assert ledger.part_name("retry", "r", ["a"]).startswith("retry-r-")


def test_the_ledger_names_the_part_of_each_row(storage):
    name = write(storage, "part", "a", "b")
    table = ledger.read_ledger(storage, ("uri", "status"))
    assert table.to_pylist() == [{"uri": u, "status": "ok", "part": name} for u in "ab"]


def test_without_the_lease_nothing_is_written(storage):
    with pytest.raises(LeaseLost):
        ledger.write_pair(storage, PART, faces("a"), images("a"), lost_at(1))
    assert storage.list("faces") == storage.list("images") == []


def test_faces_are_written_first_and_deleted_if_the_lease_is_lost(storage):
    seen = []
    with pytest.raises(LeaseLost):
        ledger.write_pair(storage, PART, faces("a"), images("a"), lost_at(2, lambda: seen.append(
            (len(storage.list("faces")), len(storage.list("images"))))))
    assert seen == [(0, 0), (1, 0)] and storage.list("faces") == storage.list("images") == []


def test_faces_stay_if_the_lease_cannot_be_read(storage):
    """Another process of the same run may be writing this part; `remove_halves` deletes them at the end."""
    def check():
        if storage.list("faces"):
            raise OSError("the store is away")

    with pytest.raises(OSError, match="away"):
        ledger.write_pair(storage, PART, faces("a"), images("a"), check)
    assert len(storage.list("faces")) == 1 and storage.list("images") == []


def test_files_that_are_not_ours_are_no_parts_and_stay(storage):
    name = write(storage, "part", "a")
    for path in ("images/mine.parquet", "images/part-00000-c000.parquet", "images/photo.jpg", "faces/_SUCCESS"):
        storage.write(path, b"somebody's")
    assert ledger.committed_parts(storage) == [name] and ledger.remove_halves(storage) == 0
    assert ledger.list_files(storage).foreign == ("images/mine.parquet", "images/part-00000-c000.parquet")
    ledger.remove_parts(storage)
    left = [file.path for folder in ("faces", "images") for file in storage.list(folder)]
    assert left == ["faces/_SUCCESS", "images/mine.parquet", "images/part-00000-c000.parquet", "images/photo.jpg"]


@pytest.mark.parametrize("removed", [True, False], ids=["not counted", "counted"])
def test_a_writer_that_lost_the_lease_deletes_a_part_that_the_other_run_has_not_counted(storage, removed):
    """It was suspended before it wrote images; if the other run began then, that run deleted the faces."""
    class Suspended(StorageWrapper):
        def write(self, path, content):
            if removed and path.startswith("images/"):
                assert ledger.remove_halves(storage) == 1
            storage.write(path, content)

    with pytest.raises(LeaseLost):
        ledger.write_pair(Suspended(storage), PART, faces("a"), images("a"), lost_at(3))
    assert ledger.committed_parts(storage) == ([] if removed else [PART])
    assert len(storage.list("images")) == (0 if removed else 1)


def test_single_halves_are_not_committed_and_are_deleted(storage):
    whole, half, other = write(storage, "part", "a"), write(storage, "part", "b"), write(storage, "part", "c")
    storage.delete(f"images/{half}.parquet")
    storage.delete(f"faces/{other}.parquet")
    assert ledger.committed_parts(storage) == [whole]
    assert ledger.read_ledger(storage)["uri"].to_pylist() == ["a"]
    assert ledger.remove_halves(storage) == 2
    assert uris_in(storage, "faces") == ["a", "a"] and uris_in(storage, "images") == ["a"]


def test_dropping_uris_keeps_the_other_rows(storage):
    write(storage, "part", "a", "b", "c")
    untouched = write(storage, "part", "d")
    write(storage, "retry", "e", "f", status="failed")
    ledger.drop_uris(storage, "r2", pa.array(["b", "e", "f", "unknown"]))
    assert uris_in(storage, "images") == ["a", "c", "d"] and uris_in(storage, "faces") == ["a", "a", "c", "c", "d", "d"]
    assert sorted(ledger.committed_parts(storage)) == sorted([untouched, ledger.part_name("part", "r2", ["a", "c"])])
    # The rows keep their run_id, the file keeps its metadata.
    kept = pq.read_table(pa.BufferReader(storage.read(f"images/{ledger.part_name('part', 'r2', ['a', 'c'])}.parquet")))
    assert set(kept["run_id"].to_pylist()) == {"r1"} and kept.schema.metadata[b"facelake.fingerprint"] == b"f"


@pytest.mark.parametrize(("only", "found"), [((), []), (("unknown",), []), (("c", "a", "unknown"), ["a", "c"])])
def test_the_ledger_of_some_uris_only(storage, only, found):
    write(storage, "part", "a", "b")
    write(storage, "part", "c")
    table = ledger.read_ledger(storage, ("uri", "status"), only=pa.array(only, pa.string()))
    assert table.column_names == ["uri", "status", "part"] and sorted(table["uri"].to_pylist()) == found


def test_rows_are_counted_in_all_files(storage):
    uris = pa.array(["a", "c"])
    assert ledger.count_rows(storage, uris) == 0
    name = write(storage, "part", "a", "b")                       # two faces each
    assert ledger.count_rows(storage, uris) == 3
    assert ledger.count_rows(storage, pa.array([], pa.string())) == 0
    storage.write("_rewrite/faces/part-x.parquet", ledger.to_parquet(faces("c")))
    storage.write("_rewrite/images/part-x.parquet", ledger.to_parquet(images("c")))
    assert ledger.count_rows(storage, uris) == 5
    storage.delete(f"images/{name}.parquet")                      # a single half counts too
    assert ledger.count_rows(storage, uris) == 4


def test_a_rewrite_that_is_stopped_before_the_commit_changes_nothing(storage):
    def taken_over():
        assert storage.list("_rewrite/images") and uris_in(storage, "images") == ["a", "b"]
        raise RuntimeError("taken over")

    write(storage, "part", "a", "b")
    with pytest.raises(RuntimeError, match="taken over"):
        ledger.drop_uris(storage, "r2", pa.array(["a"]), taken_over)
    assert not ledger.finish_rewrite(storage)
    assert uris_in(storage, "images") == ["a", "b"] and storage.list("_rewrite/images") == []


@pytest.mark.parametrize("survives", range(14))
def test_a_crash_at_any_step_of_a_rewrite_loses_nothing(storage, survives):
    write(storage, "part", "a", "b")
    write(storage, "retry", "c", status="failed")
    dropped = pa.array(["b", "c"])
    crashed = False
    try:
        ledger.drop_uris(DyingStorage(storage, survives), "r2", dropped)
    except Crash:
        crashed = True
    # The next run finishes the rewrite, deletes halves, and drops the same uris again.
    ledger.finish_rewrite(storage)
    ledger.remove_halves(storage)
    ledger.drop_uris(storage, "r3", dropped)
    assert uris_in(storage, "images") == ["a"] and uris_in(storage, "faces") == ["a", "a"]
    assert storage.list("_rewrite") == [] and storage.list("_rewrite/images") == []
    assert crashed or survives > 8       # a rewrite has more than 8 steps


def test_duplicates_are_repaired(storage):
    write(storage, "part", "a", "b", run_id="r1")
    write(storage, "part", "b", "c", run_id="r2")
    assert ledger.repair_duplicates(storage, "r3") == 1
    assert uris_in(storage, "images") == ["a", "b", "c"]
    assert uris_in(storage, "faces") == ["a", "a", "b", "b", "c", "c"]
    assert ledger.repair_duplicates(storage, "r3") == 0


class Counting(StorageWrapper):
    """Notes the listings."""

    def __init__(self, storage):
        super().__init__(storage)
        self.listed = []

    def list(self, folder):
        self.listed.append(folder)
        return self._storage.list(folder)


def test_one_listing_tells_all_about_the_tables(storage):
    whole, half = write(storage, "part", "a"), write(storage, "part", "b")
    storage.delete(f"images/{half}.parquet")
    counting = Counting(storage)
    files = ledger.list_files(counting)
    assert files.committed == [whole] and files.foreign == () and ledger.remove_halves(counting, files) == 1
    assert [table.column("uri").to_pylist() for table in ledger.scan_ledger(counting, parts=files.committed)] == [["a"]]
    ledger.drop_uris(counting, "r2", pa.array(["a"]), parts=files.committed)
    assert counting.listed.count("faces") == counting.listed.count("images") == 1
    assert uris_in(storage, "images") == []


@pytest.mark.parametrize(
    ("only", "read"),
    [((), 0), (("0",), 0), (("z",), 0), (("a5",), 0), (("a",), 1), (("b", "b0"), 1), (("c", "a"), 2), (("a", "f"), 2)],
)
def test_only_parts_that_may_have_the_uris_are_read(storage, monkeypatch, only, read):
    """A part tells its first and its last uri. "b0" lies between those of the second part, "a5" between two parts."""
    for uris in ("a", "bc", "def"):
        write(storage, "part", *uris)
    reads, real = [], pq.ParquetFile.read

    def counted(parquet, *arguments, **options):
        reads.append(parquet)
        return real(parquet, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", counted)
    found = ledger.read_ledger(storage, ("uri",), only=pa.array(only, pa.string()))["uri"].to_pylist()
    assert sorted(found) == sorted(set(only) & set("abcdef")) and len(reads) == read


def test_a_very_long_uri_is_found(storage):
    """Parquet files keep no statistics of long values."""
    long = "s3://b/" + "ü" * 5000
    write(storage, "part", long, "z")
    assert ledger.read_ledger(storage, ("uri",), only=pa.array([long]))["uri"].to_pylist() == [long]


def test_duplicates_in_many_parts_are_repaired(storage):
    for run in range(4):
        write(storage, "part", *"abc"[: run + 1], f"only {run}", run_id=f"r{run}")
    assert ledger.repair_duplicates(storage, "r9") == 3 + 2 + 1
    assert uris_in(storage, "images") == ["a", "b", "c", "only 0", "only 1", "only 2", "only 3"]
    assert len(uris_in(storage, "faces")) == 2 * 7


def test_vectors_are_stored_plainly_and_the_rest_compressed():
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 8, pa.float32()), 4)
    table = pa.table({"uri": ["a", "b"], "eye_points": vectors, "names": [["x"], []], "embedding": vectors})
    file = pq.ParquetFile(pa.BufferReader(ledger.to_parquet(table)))
    columns = [file.metadata.row_group(0).column(i) for i in range(4)]
    assert [column.compression for column in columns] == ["ZSTD", "ZSTD", "ZSTD", "UNCOMPRESSED"]
    assert "BYTE_STREAM_SPLIT" not in columns[3].encodings
    assert file.read().equals(table)
