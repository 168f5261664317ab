import json
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.batch import Status
from pipeline.output import report
from pipeline.output.report import RunTotals
from pipeline.output.todo import ErrorKind, Outcome, TodoCounts

NOTHING_DONE = RunTotals(0, 0, {status.value: 0 for status in Status}, 0.5, None)
TWO_DONE = RunTotals(2, 3, NOTHING_DONE.by_status | {"ok": 1, "unreadable": 1}, 4.0, 0.7)


def rows(*values):
    schema = pa.schema([("uri", pa.string()), ("status", pa.string()), ("error", pa.string())])
    return pa.Table.from_pylist([dict(zip(("uri", "status", "error"), v, strict=True)) for v in values], schema=schema)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((), 0.0), (("ok", "no_face"), 0.0), (("ok", "failed", "unreadable", "no_face"), 0.5), (("too_large",), 1.0)],
)
def test_bad_share(statuses, expected):
    table = rows(*((str(i), status, None) for i, status in enumerate(statuses)))
    counts = report.status_counts(table)
    assert sum(counts.values()) == len(statuses) and set(counts) == {status.value for status in Status}
    assert report.bad_share(counts) == expected


def outcome(images=2, errors=(), other_kinds=0, other_images=0):
    counts = report.status_counts(rows(*(("", "ok", None) for _ in range(images - len(errors)))))
    counts["unreadable"] = len(errors)
    return Outcome(counts, counts | {"ok": counts["ok"] + 7}, tuple(errors), other_kinds, other_images, False)


def test_errors_by_kind():
    kinds = [ErrorKind("unreadable", "cut off", 2000, "a"), ErrorKind("failed", "detect: x", 1, "c")]
    assert report.error_lines(outcome(errors=kinds, other_kinds=2, other_images=3)) == [
        "2,000 unreadable: cut off (for example a)",
        "1 failed: detect: x (for example c)",
        "3 more of 2 other kinds; see `error` in images/",
    ]
    assert report.error_lines(outcome()) == []


def todo(**counts):
    return TodoCounts(**{"images": 3, "listed": 10, "duplicates": 0, "done": 7, "changed": 0, "retried": 0, **counts})


def test_todo_line_names_only_what_there_is():
    assert report.todo_line(todo(), "") == "10 images listed; 7 done before; 3 to do"
    line = report.todo_line(todo(duplicates=2, changed=1, retried=3, erased=5, vanished=8), "4 hidden")
    for part in ("3 of them tried again", "5 left out because jobs.erase erased them",
                 "2 duplicates dropped",
                 "8 done before that are not listed any more", "1 changed", "--redo-changed", "skipped 4 hidden"):
        assert part in line


def test_summary():
    ended = outcome(errors=[ErrorKind("unreadable", "cut off", 1, "b")])
    assert report.summary_lines("/out", ended, TWO_DONE) == [
        "2 images, 3 faces in 4 s, 0.5 images/s",
        "ok 1  unreadable 1",
        "  1 unreadable: cut off (for example b)",
        "/out holds 9 images: faces/*.parquet, images/*.parquet, run.json",
    ]
    assert report.summary_lines("/out", ended, NOTHING_DONE)[0].startswith("nothing to do")
    copied = "1,234 images copied from others of equal content instead of computed"
    assert report.summary_lines("/out", ended, replace(TWO_DONE, copied=1234))[1] == copied
    only_copied = report.summary_lines("/out", ended, replace(NOTHING_DONE, copied=1234))
    assert only_copied[:2] == [copied, "ok 1  unreadable 1"]


@pytest.mark.parametrize("ran", [True, False])
def test_run_json_is_plain_and_whole(ran):
    pools = [{"stages": ["decode", "detect"], "actors": 1}] if ran else None
    engines = [{"model": "d@1", "engine": "torch", "actors": 1}] if ran else None
    content = report.run_json(
        run_id="r", started=datetime(2026, 1, 1, tzinfo=UTC), fingerprint="f", settings={"min_score": 0.5},
        models={"detector": {"identity": "d@1"}}, alignment={"box_side_px": 110.0}, cosine_thresholds={"0.01": 0.4},
        pools=pools, engines=engines, todo=todo(vanished=4), skipped={"hidden": 4},
        parquet={"image": "image", "uri": None}, outcome=outcome(images=1),
        run=replace(TWO_DONE if ran else NOTHING_DONE, copied=5),
    )
    assert json.loads(json.dumps(content)) == content
    assert content["output"]["images"] == content["output"]["ok"] == 8
    assert content["listing"] == {"listed": 10, "duplicates": 0, "vanished": 4, "skipped": {"hidden": 4},
                                  "parquet": {"image": "image", "uri": None}}
    assert (content["this_run"]["images"], content["this_run"]["unreadable"]) == ((2, 1) if ran else (0, 0))
    assert content["this_run"]["copied"] == 5
    assert content["throughput"] == (
        {"seconds": 4.0, "images_per_s": 0.5, "faces_per_s": 0.75, "images_per_s_after_start": 0.7} if ran
        else {"seconds": 0.0, "images_per_s": None, "faces_per_s": None, "images_per_s_after_start": None}
    )
    assert (content["plan"], content["engines"]) == (pools, engines)


@pytest.mark.parametrize(
    ("moved", "images", "said"), [(0, 0, False), (0, 5, False), (1, 11, False), (1, 10, True), (1, 1, True)]
)
def test_moved_photos_are_named_when_they_are_many(moved, images, said):
    line = report.moved_line(moved, images, copied=False)
    assert line == report.moved_line(moved, images, copied=True) or "--dedupe" in line
    assert (line is not None) is said and (not said or line.startswith(f"{moved} of the {images} images"))
