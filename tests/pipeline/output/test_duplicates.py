"""Which images of the to-do have the content of others."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.output.duplicates import CONTENTS, COPIES, Duplicates
from pipeline.output.erased import Erased
from pipeline.output.todo import TodoJoin
from pipeline.schemas import IMAGES, LISTING, TIMESTAMP

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MD5, OTHER_MD5 = "0" * 32, "1" * 32
LEDGER = pa.schema([*IMAGES, ("part", pa.string())])


def listing(*rows: tuple) -> pa.Table:
    """Rows of uri, size and etag."""
    return pa.Table.from_pylist(
        [dict(zip(("uri", "size", "etag"), row, strict=False)) for row in rows], schema=LISTING
    )


def ledger(*rows: tuple) -> pa.Table:
    """Rows of uri, content, etag, status, part and n_faces, as a run writes them."""
    return pa.Table.from_pylist([ledger_row(*row) for row in rows], schema=LEDGER)


def ledger_row(uri, content, etag=None, status="ok", part="p", n_faces=1):
    return {
        "uri": uri, "status": status, "etag": etag, "part": part, "n_faces": n_faces,
        "sha256": sha256(content) if content is not None else None, "file_bytes": len(content or ""),
    }


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


class Run:
    """A run on this listing and ledger; `files` are the contents that can be read."""

    def __init__(self, join: TodoJoin, wanted: pa.Table, known: pa.Table, files: dict[str, str], **options) -> None:
        self.join, self.files = join, files
        join.add_listing(wanted)
        join.add_ledger(known)
        join.compute(**{"redo_changed": False, **options})
        dropped = join.uris_to_drop().to_pylist()
        self.duplicates, self.asked = Duplicates(join), []
        self.read(*self.duplicates.without_size())
        kept = [row for row in known.to_pylist() if row["uri"] not in dropped]
        self.duplicates.add_ledger(iter([pa.Table.from_pylist(kept, schema=LEDGER), ledger()]))
        self.read(*self.duplicates.candidates())
        self.found = self.duplicates.settle()

    def read(self, images, tables) -> None:
        uris = [uri for table in tables for uri in table["uri"].to_pylist()]
        assert len(uris) == images
        self.asked += uris
        rows = [{"uri": uri, "sha256": sha256(self.files[uri]), "n_bytes": len(self.files[uri]), "etag": "answered",
                 "mtime": NOON} for uri in uris if uri in self.files]
        self.duplicates.add_contents(pa.Table.from_pylist(rows, schema=CONTENTS))

    def to_do(self) -> list[str]:
        return [uri for table in self.join.rows(100) for uri in table["uri"].to_pylist()]

    def copies(self) -> dict[str, str]:
        """The name of each copied image, and the part with its rows."""
        found = pa.concat_tables([COPIES.empty_table(), *self.duplicates.copies(2)])
        assert found["part"].to_pylist() == sorted(found["part"].to_pylist())
        return dict(zip(found["uri"].to_pylist(), found["part"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("wanted", "known", "files", "asked", "to_do", "copies"),
    [
        ((), (), {}, [], [], {}),
        ((("a", 1),), (), {}, [], ["a"], {}),
        ((("a", 1), ("b", 2)), (("c", "xyz"),), {}, [], ["a", "b"], {}),                 # all of other sizes
        ((("a", 1), ("b", 1)), (), {"a": "x", "b": "y"}, ["a", "b"], ["a", "b"], {}),    # only the size is equal
        ((("b", 1), ("a", 1), ("c", 1)), (), {"a": "x", "b": "x", "c": "x"}, ["a", "b", "c"], ["a"], {}),
        ((("a", 1), ("b", 1)), (("old", "x"),), {"a": "x", "b": "y"}, ["a", "b"], ["b"], {"a": "p"}),
        # one that cannot be read, or whose size is another by now, is computed
        ((("a", 1), ("b", 1)), (("old", "x"),), {"a": "xx"}, ["a", "b"], ["a", "b"], {}),
        # what is unreadable or has no face is known too; what failed is not, nor what has no sha256
        ((("a", 1),), (("old", "x", None, "unreadable"),), {"a": "x"}, ["a"], [], {"a": "p"}),
        ((("a", 1),), (("old", "x", None, "failed"),), {"a": "x"}, [], ["a"], {}),
        ((("a", 1),), (("old", "x", None, "fetch_failed"),), {"a": "x"}, [], ["a"], {}),
        ((("a", 1),), (("old", None, None, "too_large"),), {"a": "x"}, [], ["a"], {}),
        # a row that failed before, whose content others have by now
        ((("a", 1), ("new", 1)), (("a", "x", None, "failed"),), {"a": "x", "new": "x"}, ["a", "new"], ["a"], {}),
        # images that are done are nobody's business
        ((("a", 1), ("old", 1)), (("old", "y"),), {"a": "x"}, ["a"], ["a"], {}),
        # the first of several parts
        ((("a", 1),), (("o", "x", None, "ok", "q"), ("p", "x", None, "ok", "r")), {"a": "x"}, ["a"], [], {"a": "q"}),
        # sizes that the listing does not have are found by reading, before the others are chosen
        ((("a", None), ("b", 1), ("c", 2)), (), {"a": "x", "b": "x"}, ["a", "b"], ["a", "c"], {}),
        ((("a", None), ("b", None)), (("old", "x"),), {"a": "x", "b": "y"}, ["a", "b"], ["b"], {"a": "p"}),
        ((("a", None), ("b", 5)), (), {}, ["a"], ["a", "b"], {}),
        # empty files are equal
        ((("a", 0), ("b", 0)), (), {"a": "", "b": ""}, ["a", "b"], ["a"], {}),
    ],
)  # fmt: skip
def test_equal_images_are_told_by_size_and_content(wanted, known, files, asked, to_do, copies):
    with TodoJoin() as join:
        run = Run(join, listing(*wanted), ledger(*known), files)
        assert run.asked == asked
        assert run.to_do() == to_do
        assert run.copies() == copies
        assert len(to_do) + run.found == len(wanted) - sum(uri == "old" for uri, _ in wanted)


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        (("s3://b/a", MD5), ("s3://b/b", MD5), True),
        (("s3://b/a", MD5), ("s3://b/b", OTHER_MD5), False),
        (("s3://b/a", MD5), ("s3://b/b", None), True),
        (("s3://b/a", MD5), ("s3://b/b", f"{MD5}-2"), True),               # uploaded in pieces
        (("s3://b/a", f"{MD5}-2"), ("s3://b/b", f"{OTHER_MD5}-2"), False),
        (("s3://b/a", f"{MD5}-2"), ("s3://b/b", f"{OTHER_MD5}-3"), True),
        (("s3://b/a", "abc"), ("s3://b/b", "def"), True),                  # no MD5
        (("gs://b/a", MD5), ("gs://b/b", OTHER_MD5), True),                # says nothing of the content
        (("https://h/a", MD5), ("https://h/b", OTHER_MD5), True),
        (("s3://b/t.tar#a", MD5), ("s3://b/b", OTHER_MD5), True),          # the etag of the archive
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [False, True])
def test_the_etag_tells_only_where_it_follows_from_the_content(first, second, asked, known):
    rows = [(uri, 1, etag) for uri, etag in (first, second)]
    before = ledger(*((uri, "x", etag) for uri, _, etag in rows[1:] if known))
    with TodoJoin() as join:
        run = Run(join, listing(*rows), before, {first[0]: "x", second[0]: "x"})
        assert run.asked == (sorted(uri for uri, *_ in rows[: 2 - known]) if asked else [])
        assert run.found == int(asked)


def test_a_third_etag_keeps_nobody_away():
    rows = [("s3://b/a", 1, MD5), ("s3://b/b", 1, OTHER_MD5), ("s3://b/c", 1, OTHER_MD5)]
    with TodoJoin() as join:
        run = Run(join, listing(*rows), ledger(), {"s3://b/b": "x", "s3://b/c": "x"})
        assert run.asked == ["s3://b/b", "s3://b/c"] and run.to_do() == ["s3://b/a", "s3://b/b"]


def test_what_the_store_says_of_a_copy_is_its_own():
    """The etag and time of the listing win, as for images that are computed."""
    rows = pa.Table.from_pylist(
        [{"uri": "a", "size": 1, "etag": "listed"}, {"uri": "b", "size": 1}], schema=LISTING
    )
    with TodoJoin() as join:
        run = Run(join, rows, ledger(("old", "x", "its own", "ok", "p", 7)), {"a": "x", "b": "x"})
        found = pa.concat_tables(run.duplicates.copies(100)).to_pylist()
    same = {"mtime": NOON, "sha256": sha256("x"), "part": "p", "n_faces": 7}
    assert found == [{"uri": "a", "etag": "listed", **same}, {"uri": "b", "etag": "answered", **same}]
    assert COPIES.field("mtime").type == TIMESTAMP


def test_copies_of_new_images_follow_when_these_are_computed():
    files = dict.fromkeys(("a", "b", "c"), "x") | dict.fromkeys(("d", "e"), "y") | {"f": "z"}
    with TodoJoin() as join:
        run = Run(join, listing(*((uri, 1) for uri in files)), ledger(("old", "z")), files)
        assert (run.to_do(), run.found, run.copies()) == (["a", "d"], 4, {"f": "p"})
        assert run.duplicates.forget_copied() == 3 and run.copies() == {}
        # of the two that were computed the second failed
        run.duplicates.add_computed(iter([ledger(("a", "x", None, "ok", "q")), ledger(("d", "y", None, "failed"))]))
        assert run.copies() == {"b": "q", "c": "q"}
        assert run.duplicates.forget_copied() == 1
        run.duplicates.put_back()
        assert run.to_do() == ["e"]


def test_an_image_that_changed_before_it_was_computed_gives_no_copies():
    with TodoJoin() as join:
        run = Run(join, listing(("a", 1), ("b", 1)), ledger(), {"a": "x", "b": "x"})
        run.duplicates.add_computed(iter([ledger(("a", "other"))]))
        assert run.copies() == {} and run.duplicates.forget_copied() == 1


def test_erased_images_stay_away_and_a_changed_one_is_no_source():
    """The rows of a changed image are dropped before."""
    erased = Erased("5a17", pa.array([], pa.string())).adding(pa.array(["erased"]))
    wanted = listing(("erased", 1), ("changed", 1, "new"), ("b", 1))
    files = {"erased": "x", "changed": "y", "b": "x"}
    with TodoJoin() as join:
        run = Run(join, wanted, ledger(("changed", "x", "before")), files, redo_changed=True, erased=erased)
        assert run.asked == ["b", "changed"] and run.to_do() == ["b", "changed"] and run.copies() == {}


@pytest.mark.parametrize("redo_changed", [False, True])
def test_an_image_that_changed_into_a_known_one_is_copied_if_it_is_done_again(redo_changed):
    known = ledger(("changed", "x", "before"), ("old", "y", None, "ok", "q"))
    with TodoJoin() as join:
        run = Run(join, listing(("changed", 1, "new")), known, {"changed": "y"}, redo_changed=redo_changed)
        assert run.to_do() == [] and run.copies() == ({"changed": "q"} if redo_changed else {})


def test_copies_come_in_tables_of_so_many_rows():
    files = {f"{number:05}": "x" for number in range(5000)}
    with TodoJoin() as join:
        run = Run(join, listing(*((uri, 1) for uri in files)), ledger(("old", "x")), files)
        assert run.found == 5000
        assert [len(table) for table in run.duplicates.copies(2000)] == [2000, 2000, 1000]
