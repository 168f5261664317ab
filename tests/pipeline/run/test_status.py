from dataclasses import replace

import pytest

from pipeline.run.status import ProcessStatus, StatusReporter, describe_pool
from tests.support.stages import FakeBoard

AT_WORK = ProcessStatus("decode+detect", "a", 7, "detect", 3, ("/p/1.jpg", "/p/2.jpg"), 5)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (ProcessStatus("decode", "a", 7), "pid 7 on a: "),
        (ProcessStatus("decode", "a", 7, "loading decode"), "pid 7 on a: loading decode"),
        (AT_WORK, "pid 7 on a: detect, with /p/1.jpg, /p/2.jpg and 5 more"),
        (ProcessStatus("decode", "a", 7, "decode", 0, ("/p/1.jpg",), 0, "/p/3.jpg"),
         "pid 7 on a: decode, with /p/1.jpg, reading /p/3.jpg"),
        (ProcessStatus("decode", "a", 7, "detect", 0, ("/p/1\n2.jpg",)), "pid 7 on a: detect, with /p/1\\n2.jpg"),
    ],
)
def test_a_status_as_a_line_and_as_json(status, line):
    assert str(status) == line
    assert ProcessStatus.from_json(status.to_json()) == status


def test_work_begins_and_ends():
    status = ProcessStatus("sink", "a", 7).begins("writing", [str(i) for i in range(5)])
    assert (status.doing, status.uris, status.more, status.steps) == ("writing", ("0", "1", "2"), 2, 0)
    assert status.ends() == ProcessStatus("sink", "a", 7, "waiting", 1)


def test_a_process_that_dies_while_it_loads_again_and_again_makes_no_progress():
    """Ray starts one after the other, for ever."""
    first = ProcessStatus("decode", "a", 7, "loading decode")
    after = ProcessStatus("decode", "a", 8, "loading detect", 1)
    assert first.progress == after.progress
    assert AT_WORK.progress == replace(AT_WORK, pid=8).progress
    assert AT_WORK.progress not in (AT_WORK.ends().progress, replace(AT_WORK, steps=4).progress, first.progress)


def test_a_reporter_sends_only_what_has_changed():
    board = FakeBoard()
    reporter = StatusReporter("detect", board.report)
    reporter.send()
    reporter.send()
    with reporter.doing("loading detect", ["/a"]):
        reporter.send()
        reporter.send()
    reporter.send()
    assert [(status.doing, status.uris, status.steps, status.ready) for status in board.statuses] == [
        ("", (), 0, True), ("loading detect", ("/a",), 0, False), ("waiting", (), 1, True)]
    assert board.statuses[0].pid and board.statuses[0].host


def test_work_that_raises_has_ended_too():
    board = FakeBoard()
    reporter = StatusReporter("detect", board.report)
    with pytest.raises(ValueError, match="on demand"), reporter.doing("detect"):
        raise ValueError("on demand")
    reporter.send()
    assert (board.statuses[0].doing, board.statuses[0].steps) == ("waiting", 1)


def test_a_started_reporter_sends_by_itself(monkeypatch):
    monkeypatch.setattr("pipeline.run.status.SEND_EVERY_S", 0.01)
    board = FakeBoard()
    reporter = StatusReporter("detect", board.report)
    reporter.start()
    for doing in ("loading detect", "detect"):
        with reporter.doing(doing):
            assert board.wait_for(doing)
    assert board.wait_for("waiting")


class Files:
    files_read, reading = 5, "/p/6.jpg"


def test_files_are_progress_too():
    board = FakeBoard()
    reporter = StatusReporter("decode", board.report)
    reporter.follow(Files())
    reporter.send()
    assert (board.statuses[0].steps, board.statuses[0].reading) == (5, "/p/6.jpg")


@pytest.mark.parametrize(
    ("statuses", "lines"),
    [
        ([], ["  detect: 2 × (1 CPU): 0 ready"]),
        ([ProcessStatus("detect", "a", 1, "loading detect"), ProcessStatus("sink", "a", 9, "writing")],
         ["  detect: 2 × (1 CPU): 0 ready", "    pid 1 on a: loading detect"]),
        ([ProcessStatus("detect", "a", pid, "waiting") for pid in range(1, 8)],
         ["  detect: 2 × (1 CPU): 7 ready", *(f"    pid {pid} on a: waiting" for pid in range(1, 6)),
          "    and 2 more"]),
    ],
)
def test_a_pool_is_described(statuses, lines):
    assert describe_pool("detect", "detect: 2 × (1 CPU)", statuses) == lines


def test_the_images_that_passed_and_the_seconds_since_the_first_block(monkeypatch):
    clock = iter([100.0, 103.0, 107.0])
    monkeypatch.setattr("pipeline.run.status.time.monotonic", lambda: next(clock))
    reporter = StatusReporter("detect", FakeBoard().report)
    reporter.begins_block()
    reporter.passed({"images": 4, "faces": 7, "ok": 4})
    reporter.begins_block()
    reporter.passed({"images": 5, "faces": 0, "failed": 5})
    status = reporter.status()
    assert (status.passed, status.working_s) == ({"images": 9, "faces": 7, "ok": 4, "failed": 5}, 7.0)
    assert ProcessStatus.from_json(status.to_json()) == status
