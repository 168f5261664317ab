from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.output.erased import Erased
from pipeline.output.todo import ErrorKind, TodoCounts, TodoJoin
from pipeline.schemas import LISTING

EMPTY = hashlib.sha256(b"").hexdigest()

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, UTC)
LATER = datetime(2026, 1, 2, 12, 0, 0, 123457, UTC)   # a microsecond

LEDGER = pa.schema([
    ("uri", pa.string()), ("status", pa.string()), ("etag", pa.string()), ("mtime", pa.timestamp("us", "UTC")),
    ("file_bytes", pa.int64()),
])


def listing(*rows: dict | str) -> pa.Table:
    return pa.Table.from_pylist([row if isinstance(row, dict) else {"uri": row} for row in rows], schema=LISTING)


def ledger(*rows: tuple) -> pa.Table:
    """Rows of uri and status, then etag, mtime and file_bytes if given."""
    return pa.Table.from_pylist([dict(zip(LEDGER.names, row, strict=False)) for row in rows], schema=LEDGER)


def plan_todo(wanted, known, batch_rows=1000, scopes=(), **options) -> tuple[TodoCounts, pa.Table, list[str]]:
    """The counts, the rows to do, and the uris to drop from the ledger."""
    with TodoJoin() as join:
        join.add_listing(wanted)
        join.add_ledger(known, scopes)
        todo = join.compute(**{"redo_changed": False, **options})
        batches = list(join.rows(batch_rows))
        assert [len(batch) for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
        rows = pa.concat_tables([LISTING.empty_table(), *batches])
        assert len(rows) == todo.images and todo.listed == todo.done + todo.erased + todo.images
        return todo, rows, join.uris_to_drop().to_pylist()


@pytest.mark.parametrize(
    ("wanted", "known", "rows", "drop", "counts"),
    [
        # counts: listed, duplicates, done, changed, retried
        (listing(), ledger(), [], [], (0, 0, 0, 0, 0)),
        (listing(), ledger(("a", "ok"), ("b", "failed")), [], [], (0, 0, 0, 0, 0)),
        (listing("a"), ledger(), ["a"], [], (1, 0, 0, 0, 0)),
        (listing("a"), ledger(("a", "ok")), [], [], (1, 0, 1, 0, 0)),
        (listing("b", "a", "b", "b"), ledger(), ["a", "b"], [], (2, 2, 0, 0, 0)),
        (
            listing("ok", "no_face", "unsupported", "unreadable", "too_large", "fetch_failed", "failed", "new"),
            ledger(*((s, s) for s in ["ok", "no_face", "unsupported", "unreadable", "too_large", "fetch_failed",
                                      "failed"]), ("elsewhere", "failed")),
            ["failed", "fetch_failed", "new"], ["failed", "fetch_failed"], (8, 0, 5, 0, 2),
        ),
        # after a crash the ledger has a uri twice
        (listing("a", "b"), ledger(("a", "failed"), ("a", "ok"), ("b", "ok"), ("b", "ok")), [], [], (2, 0, 2, 0, 0)),
        # uris are compared byte by byte
        (listing("A", "a ", "ä", "a\n"), ledger(("a", "ok")), ["A", "a\n", "a ", "ä"], [], (4, 0, 0, 0, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("redo_changed", [False, True])
def test_what_is_left_to_do(wanted, known, rows, drop, counts, redo_changed):
    todo, found, redone = plan_todo(wanted, known, redo_changed=redo_changed)
    assert found.schema == LISTING
    assert found["uri"].to_pylist() == rows
    assert redone == drop
    assert (todo.listed, todo.duplicates, todo.done, todo.changed, todo.retried) == counts


@pytest.mark.parametrize(
    ("now", "then", "changed"),   # etag, mtime, size
    [
        ((None, None, None), (None, None, None), False),
        ((None, None, None), ("e", NOON, 1), False),
        (("e", NOON, 1), (None, None, None), False),
        (("e", NOON, 1), ("e", NOON, 1), False),
        (("e", LATER, 1), ("e", NOON, 1), False),   # rewritten with the same content
        (("f", NOON, 1), ("e", NOON, 1), True),
        ((None, NOON, 1), ("e", NOON, 1), False),
        ((None, LATER, 1), ("e", NOON, 1), True),
        ((None, NOON, 2), ("e", NOON, 1), True),
        ((None, None, 2), (None, NOON, 1), True),
        ((None, LATER, None), (None, NOON, 1), True),
    ],
)
def test_a_changed_object_is_counted_and_done_again_only_with_redo_changed(now, then, changed):
    wanted = listing({"uri": "a", "etag": now[0], "mtime": now[1], "size": now[2]})
    known = ledger(("a", "ok", *then))
    todo, rows, redone = plan_todo(wanted, known)
    assert rows.num_rows == 0 and redone == []
    assert (todo.listed, todo.done, todo.changed) == (1, 1, int(changed))
    todo, rows, redone = plan_todo(wanted, known, redo_changed=True)
    assert rows.to_pylist() == (wanted.to_pylist() if changed else [])
    assert redone == (["a"] if changed else [])
    assert (todo.listed, todo.done, todo.changed) == (1, int(not changed), int(changed))


def test_a_failed_and_changed_object_is_retried_and_not_counted_as_changed():
    wanted = listing({"uri": "a", "etag": "f"})
    todo, rows, _ = plan_todo(wanted, ledger(("a", "failed", "e")), redo_changed=True)
    assert (len(rows), todo.changed, todo.retried) == (1, 0, 1)


def test_rows_to_do_keep_all_columns_and_members_are_sorted_by_offset():
    rows = [
        {"uri": "/m.jpg", "container": None, "offset": None, "size": 5, "etag": "e", "mtime": NOON},
        {"uri": "/t.tar#z.jpg", "container": "/t.tar", "offset": 512, "size": 1, "etag": None, "mtime": NOON},
        {"uri": "/t.tar#a.jpg", "container": "/t.tar", "offset": 9 * 10**9, "size": None, "etag": None, "mtime": None},
        {"uri": "/z.jpg", "container": None, "offset": None, "size": None, "etag": None, "mtime": LATER},
    ]  # fmt: skip
    assert plan_todo(listing(*rows[::-1]), ledger())[1].to_pylist() == rows


def test_the_row_of_a_duplicate_uri_does_not_depend_on_the_order():
    rows = [{"uri": "a", "size": 2}, {"uri": "a", "size": 1}, {"uri": "a", "etag": "e"}]
    found = [plan_todo(listing(*order), ledger())[1] for order in (rows, rows[::-1])]
    assert found[0] == found[1]
    assert found[0].select(["uri", "size", "etag"]).to_pylist() == [{"uri": "a", "size": 1, "etag": None}]


def test_the_row_of_a_duplicate_uri_is_a_whole_one():
    """Members of a tar in two manifests of different ages: the place of one with the size of the other is no image."""
    rows = [{"uri": "t#a", "container": "t", "offset": 512, "size": 90_000},
            {"uri": "t#a", "container": "t", "offset": 70_144, "size": 30_000}]
    (found,) = plan_todo(listing(*rows), ledger())[1].to_pylist()
    assert {name: found[name] for name in rows[0]} == rows[0]


def test_tables_may_have_further_columns_and_several_chunks():
    wanted = pa.concat_tables([listing("a"), listing("b"), listing()]).append_column("more", pa.array([1, 2]))
    known = ledger(("a", "ok")).append_column("n_faces", pa.array([3]))
    assert plan_todo(wanted, known)[1]["uri"].to_pylist() == ["b"]


@pytest.mark.parametrize(
    ("uris", "rows", "drop", "counts"),   # counts: done, erased, retried
    [
        ((), ["changed", "failed", "new", "ä'\n"], ["changed", "failed"], (1, 0, 1)),
        (("elsewhere",), ["changed", "failed", "new", "ä'\n"], ["changed", "failed"], (1, 0, 1)),
        (("new",), ["changed", "failed", "ä'\n"], ["changed", "failed"], (1, 1, 1)),
        # a killed erasure may leave rows of images on the list; they are not done again
        (("new", "failed", "changed", "done", "ä'\n"), [], [], (1, 4, 0)),
    ],
)
def test_erased_images_are_left_out(uris, rows, drop, counts):
    erased = Erased("5a17", pa.array([], pa.string())).adding(pa.array(uris, pa.string()))
    wanted = listing("new", "failed", {"uri": "changed", "etag": "f"}, "done", "ä'\n", "new")
    known = ledger(("failed", "failed"), ("changed", "ok", "e"), ("done", "ok"))
    todo, found, redone = plan_todo(wanted, known, redo_changed=True, erased=erased)
    assert found["uri"].to_pylist() == rows and redone == drop
    assert (todo.done, todo.erased, todo.retried) == counts
    assert todo.listed == 5


@pytest.mark.parametrize("batch_rows", [1, 7, 3000, 5000, 9000])
def test_rows_come_in_tables_of_batch_rows(batch_rows):
    names = [f"{i:05}" for i in range(5000)]
    assert plan_todo(listing(*names[::-1]), ledger(), batch_rows)[1]["uri"].to_pylist() == names


@pytest.mark.parametrize(
    ("scopes", "vanished"),
    [((), 0), (("/a/",), 2), (("/a/", "/a/b/"), 2), (("/a/b/", "/c/"), 2), (("/nowhere/",), 0)],
)
def test_images_that_a_listed_folder_no_longer_has_are_counted_as_vanished(scopes, vanished):
    known = ledger(("/a/1", "ok"), ("/a/gone", "failed"), ("/a/b/gone", "ok"), ("/c/gone", "ok"), ("/ab", "ok"))
    todo, rows, _ = plan_todo(listing("/a/1", "/a/2"), known, scopes=scopes)
    assert todo.vanished == vanished and rows["uri"].to_pylist() == ["/a/2"]


def test_vanished_members_of_many_containers_are_counted():
    scopes = (*(f"/t/{i}.tar#" for i in range(500)), "/odd#1.tar#")
    known = ledger(("/t/7.tar#gone", "ok"), ("/t/7.tar#1", "ok"), ("/t/900.tar#1", "ok"), ("/odd#1.tar#gone", "ok"))
    assert plan_todo(listing("/t/7.tar#1"), known, scopes=scopes)[0].vanished == 2


@pytest.mark.parametrize(("whole", "redone", "vanished"), [((), [], 2), (("/a/s.tar", "/a/t.tar"), ["/a/s.tar"], 1)])
def test_the_row_of_a_damaged_container_is_dropped_when_the_container_is_whole(whole, redone, vanished):
    known = ledger(("/a/s.tar", "fetch_failed"), ("/a/s.tar#1", "ok"), ("/a/s.tar#gone", "ok"))
    todo, rows, found = plan_todo(listing("/a/s.tar#1"), known, scopes=("/a/", "/a/s.tar#"), whole=whole)
    assert (found, todo.vanished, len(rows)) == (redone, vanished, 0)


def test_the_outcome_counts_by_status_and_by_kind_of_error():
    rows = [("a", "ok", None), ("b", "no_face", None), ("z", "unreadable", "cut"), ("c", "unreadable", "cut"),
            ("d", "failed", "cut"), ("elsewhere", "ok", None), ("bad", "failed", "elsewhere")]
    rows += [(f"many{i:02}", "too_large", f"{i:02}") for i in range(11)]
    ended = [pa.table(dict(zip(("uri", "status", "error"), map(list, zip(*part, strict=True)), strict=True)))
             for part in (rows[:3], rows[3:])]
    with TodoJoin() as join:
        join.add_listing(listing(*(uri for uri, *_ in rows if uri not in ("elsewhere", "bad"))))
        join.compute(redo_changed=False)
        found = join.outcome(iter(ended))
        again = join.outcome(iter([*ended, ended[0]]))
        nothing = join.outcome(iter([]))
    zero = {"unsupported": 0, "fetch_failed": 0}
    assert found.listed == {"ok": 1, "no_face": 1, "unreadable": 2, "failed": 1, "too_large": 11, **zero}
    assert found.output == {"ok": 2, "no_face": 1, "unreadable": 2, "failed": 2, "too_large": 11, **zero}
    assert found.errors[:3] == (ErrorKind("unreadable", "cut", 2, "c"), ErrorKind("failed", "cut", 1, "d"),
                                ErrorKind("too_large", "00", 1, "many00"))
    assert (len(found.errors), found.other_kinds, found.other_images) == (12, 1, 1)
    assert not found.repeated and again.repeated and again.output["ok"] == 3
    assert not nothing.repeated and sum(nothing.output.values()) == 0 and nothing.errors == ()


@pytest.mark.parametrize(("known", "new", "moved"), [
    ([], [], 0), ([], ["a"], 0), (["a"], [], 0), (["a", "b"], ["c"], 0), (["a", "b"], ["a", "c"], 1),
    (["a", "a"], ["a", "a", None], 2), ([None], [None], 0), ([EMPTY], [EMPTY], 0),
])
def test_images_of_a_known_content_are_counted(known, new, moved):
    rows = pa.table({"sha256": pa.array([*known, *new], pa.string()),
                     "run_id": ["before"] * len(known) + ["now"] * len(new)}, pa.schema(
                         [("sha256", pa.string()), ("run_id", pa.string())]))
    with TodoJoin() as join:
        assert join.moved(iter([rows.slice(0, 1), rows.slice(1)]), "now") == moved
