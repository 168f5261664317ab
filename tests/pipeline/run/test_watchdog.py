import pickle
import signal
import threading
import time

import numpy as np
import pytest

from pipeline.batch import NO_PIXELS, FaceBatch, FetchFailure, ImageBatch, ImageRecord, TodoRow
from pipeline.run.interrupt import Stalled
from pipeline.run.watchdog import Report, Reporter, Watchdog, explain_pool, report_stages
from pipeline.stages.decode import Decode

AT_WORK = Report("decode+detect", "a", 7, "detect", 3, ("/p/1.jpg", "/p/2.jpg"), 5)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (Report("decode", "a", 7), "pid 7 on a: "),
        (Report("decode", "a", 7, "loading decode"), "pid 7 on a: loading decode"),
        (AT_WORK, "pid 7 on a: detect, with /p/1.jpg, /p/2.jpg and 5 more"),
        (Report("decode", "a", 7, "decode", 0, ("/p/1.jpg",), 0, "/p/3.jpg"),
         "pid 7 on a: decode, with /p/1.jpg, reading /p/3.jpg"),
        (Report("decode", "a", 7, "detect", 0, ("/p/1\n2.jpg",)), "pid 7 on a: detect, with /p/1\\n2.jpg"),
    ],
)
def test_what_a_process_does_in_a_line(report, line):
    assert str(report) == line
    assert Report.from_json(report.to_json()) == report


def test_work_begins_and_ends():
    report = Report("sink", "a", 7).begins("writing", [str(i) for i in range(5)])
    assert (report.doing, report.uris, report.more, report.steps) == ("writing", ("0", "1", "2"), 2, 0)
    assert report.ends() == Report("sink", "a", 7, "waiting", 1)


class Sent(list):
    """What a reporter sent."""

    def __call__(self, content):
        self.append(Report.from_json(content))


def test_a_reporter_sends_what_has_changed_and_only_that():
    sent = Sent()
    reporter = pickle.loads(pickle.dumps(Reporter("detect", print, every_s=0.01)))
    reporter._send = sent
    reporter.start()
    reporter.start()
    deadline = time.monotonic() + 10
    for doing in ("loading detect", "detect"):
        reporter.begins(doing)
        while not sent or sent[-1].doing != doing:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    assert [report.doing for report in sent][-2:] == ["loading detect", "detect"] and len(sent) <= 3
    assert sent[-1].pid and sent[-1].host and sent[-1].ready and not sent[-2].ready


def rows(n):
    return [TodoRow(f"/{i}") for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_stages_report_what_they_do(n):
    """Decode in sub-batches of two, then a stage that fails."""
    seen = []

    def decode(todo):
        for start in range(0, len(todo), 2):
            seen.append(reporter._report)
            records = tuple(ImageRecord(row.uri) for row in todo[start : start + 2])
            yield ImageBatch(records, (NO_PIXELS,) * len(records))

    def detect(batch):
        seen.append(reporter._report)
        raise ValueError("on demand")

    reporter = Reporter("decode+detect", lambda content: None)
    built = report_stages({"decode": lambda threads: decode, "detect": lambda threads: detect, "embed": None},
                          ["decode", "detect"], reporter)
    assert set(built) == {"decode", "detect"}
    stages = {name: build(4) for name, build in built.items()}
    assert reporter._report.ready and reporter._report.steps == 2
    for batch in stages["decode"](rows(n)):
        with pytest.raises(ValueError, match="on demand"):
            stages["detect"](batch)
    expected = {
        0: [],
        1: [("decode", ("/0",)), ("detect", ("/0",))],
        3: [("decode", ("/0", "/1", "/2")), ("detect", ("/0", "/1")), ("decode", ("/2",)), ("detect", ("/2",))],
    }[n]
    assert [(report.doing, report.uris) for report in seen] == expected
    assert reporter._report.steps == 2 + len(expected) + 1 and reporter._report.doing == "waiting"


def test_the_file_that_is_waited_for_is_named():
    arrives = threading.Event()

    def fetch(todo):
        yield FetchFailure("gone")
        arrives.wait(10)
        yield from [FetchFailure("gone")] * (len(todo) - 1)

    sent = Sent()
    reporter = Reporter("decode", sent)
    decode = Decode(fetch, max_pixels=10**6, min_side_px=None, threads=1, batch_images=8, batch_bytes=1 << 20)
    stage = report_stages({"decode": lambda threads: decode}, ["decode"], reporter)["decode"](1)
    batches = []
    thread = threading.Thread(target=lambda: batches.extend(stage(rows(3))))
    thread.start()
    while decode.reading != "/1":
        time.sleep(0.01)
    reporter.send()
    assert (sent[-1].doing, sent[-1].reading, sent[-1].uris) == ("decode", "/1", ("/0", "/1", "/2"))
    arrives.set()
    thread.join()
    reporter.send()
    assert sent[-1].reading is None and sent[-1].steps == 1 + 3 + 2 and [len(batch) for batch in batches] == [3]


@pytest.mark.parametrize(
    ("reports", "lines"),
    [
        ([], ["  detect: 2 × (1 CPU): 0 ready"]),
        ([Report("detect", "a", 1, "loading detect"), Report("sink", "a", 9, "writing")],
         ["  detect: 2 × (1 CPU): 0 ready", "    pid 1 on a: loading detect"]),
        ([Report("detect", "a", pid, "waiting") for pid in range(1, 8)],
         ["  detect: 2 × (1 CPU): 7 ready", *(f"    pid {pid} on a: waiting" for pid in range(1, 6)),
          "    and 2 more"]),
    ],
)
def test_a_pool_is_explained(reports, lines):
    assert explain_pool("detect", "detect: 2 × (1 CPU)", reports) == lines


# --- the watchdog itself


def watchdog(timeout_s, look, said, explain=lambda: ["  because"], give_up_s=60, leave=lambda code: None):
    """One that does not end this process."""
    last_words = "The same command goes on: x"
    return Watchdog(timeout_s, said.append, last_words, look, explain, give_up_s=give_up_s, leave=leave)


def test_it_ends_what_does_not_move_and_says_why():
    said, started = [], time.monotonic()
    stalled = pytest.raises(Stalled, match=r"nothing has moved for 0\.3 s \(--stall-timeout\)")
    with stalled, watchdog(0.3, lambda: 0, said):
        threading.Event().wait(20)
    assert 0.3 <= time.monotonic() - started < 5
    assert said == ["\nfacelake: nothing has moved for 0.3 s. What waits for what:", "  because"]


@pytest.mark.parametrize(
    ("timeout_s", "look"), [(0, lambda: 0), (0.4, time.monotonic), (60, lambda: 0)], ids=["never", "moves", "in time"]
)
def test_it_leaves_alone_what_moves(timeout_s, look):
    said = []
    with watchdog(timeout_s, look, said):
        time.sleep(0.8)
    assert said == []


def test_nothing_is_raised_after_the_end():
    said, explaining, ended = [], threading.Event(), threading.Event()

    def explain():
        explaining.set()
        ended.wait(10)
        return []

    with watchdog(0.1, lambda: 0, said, explain):
        assert explaining.wait(10)
    ended.set()
    time.sleep(0.3)
    assert said == []


def test_it_ends_only_when_nothing_is_asked_of_ray_any_more():
    asking, answered = threading.Event(), []

    def look():
        asking.set()
        time.sleep(0.3)
        answered.append(True)

    with watchdog(1, look, []):
        assert asking.wait(10)
    assert answered == [True]
    time.sleep(0.3)
    assert answered == [True]


@pytest.mark.parametrize("look", [lambda: 1 / 0, lambda: time.sleep(3)], ids=["raises", "hangs"])
def test_a_ray_that_does_not_answer_does_not_move(look, monkeypatch):
    monkeypatch.setattr("pipeline.run.watchdog.ANSWER_S", 0.1)
    said = []
    with pytest.raises(Stalled), watchdog(0.3, look, said, explain=look):
        time.sleep(20)
    assert said[1] == "  Ray does not answer"


def test_what_does_not_end_is_left():
    """Stalled is caught on its way, as by code that hangs in its own end."""
    said, left = [], threading.Event()
    try:
        with watchdog(0.2, lambda: 0, said, give_up_s=0.2, leave=lambda code: code == 1 and left.set()):
            time.sleep(20)
    except Stalled:
        assert left.wait(10)
    assert said[-1] == "facelake: Ray does not end either; left as it is. The same command goes on: x"


def test_the_signal_is_ignored_from_then_on():
    with pytest.raises(Stalled), watchdog(0.1, lambda: 0, []):
        time.sleep(20)
    signal.raise_signal(signal.SIGUSR1)


def test_faces_pass_through_unchanged():
    batch = FaceBatch.without_faces((ImageRecord("/a"),))
    reporter = Reporter("embed", lambda content: None)
    stage = report_stages({"embed": lambda threads: lambda batch: batch}, ["embed"], reporter)["embed"](1)
    assert stage(batch) is batch and np.array_equal(stage(batch).face_counts, [0])
