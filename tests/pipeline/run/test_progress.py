import io
import threading

import pytest

from pipeline.run.progress import Progress, polling


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Stands still unless it is moved."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


def faces(counts):
    return f"{counts['faces']:,} faces"


def start(total=None, stream=None):
    stream, clock = stream or io.StringIO(), Clock()
    return Progress("images", faces, total, stream=stream, now=clock), stream, clock


@pytest.mark.parametrize(
    ("total", "line"),
    [(10, "5 of 10 images (50%)  0.5 images/s  1,007 faces  0:10 left"), (None, "5 images  0.5 images/s  1,007 faces")],
)
def test_the_line_with_a_known_and_an_unknown_total(total, line):
    progress, _, clock = start(total)
    clock.seconds += 4
    progress.add(3, {"faces": 1000, "ok": 2})
    clock.seconds += 4
    progress.add(2, {"faces": 7, "ok": 2})
    assert (progress.done, progress.counts, progress.seconds) == (5, {"faces": 1007, "ok": 4}, 8)
    assert progress.line() == line


@pytest.mark.parametrize(("total", "shown"), [(10, "5 of 15 images (33%)"), (None, "5 images")])
def test_more_may_turn_out_to_be_to_do(total, shown):
    progress, _, _ = start(total)
    progress.add(5, {"faces": 1})
    progress.extend(5)
    assert progress.line().startswith(f"{shown}  ")


def test_nothing_to_do_is_a_line_too():
    progress, stream, _ = start(0)
    progress.close()
    assert stream.getvalue() == "0 of 0 images (100%)  0.0 images/s  0 faces  ? left\n"


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ([], "? left"),
        ([(10, 0)], "? left"),                              # ten seconds, and nothing done yet
        ([(1, 10)], "0:09 left"),
        ([(1000, 10), (100, 10)], "13:20 left"),            # the start of Ray does not count
        ([(1, 50), (200, 10), (10, 10)], "0:30 left"),
        ([(4000, 1)], "110:00:00 left"),
    ],
)
def test_the_time_left_comes_from_the_last_minute(added, line):
    progress, _, clock = start(100)
    for seconds, done in added:
        clock.seconds += seconds
        progress.add(done, {})
    assert progress.line().split("  ")[-1] == line


def test_the_rate_after_the_start():
    progress, _, clock = start(100)
    assert progress.rate_after_start() is None
    clock.seconds += 60
    progress.add(10, {})
    assert progress.rate_after_start() is None
    clock.seconds += 10
    progress.add(30, {})
    assert progress.rate_after_start() == 3.0


@pytest.mark.parametrize(("stream", "start_of_line"), [(Terminal(), "\r"), (io.StringIO(), "1 of 1")])
def test_a_terminal_line_is_rewritten_in_place(stream, start_of_line):
    progress, _, _ = start(1, stream)
    progress.add(1, {})
    progress.close()
    assert stream.getvalue().startswith(start_of_line) and stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(("stream", "lines"), [(Terminal(), 100), (io.StringIO(), 3)])
def test_lines_come_twice_a_second_on_a_terminal_and_every_15_s_elsewhere(stream, lines):
    progress, _, clock = start(100, stream)
    for _ in range(200):
        clock.seconds += 0.25
        progress.add(1, {})
    assert stream.getvalue().count("images/s") == lines


def test_the_last_line_is_not_repeated_in_a_log():
    progress, stream, clock = start(1)
    clock.seconds += 15
    progress.add(1, {})
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_a_line_that_was_shown_before_it_was_counted_is_not_repeated_either():
    progress, stream, clock = start(30)
    clock.seconds += 15
    progress.passed({"images": 30, "faces": 5})
    progress.add(30, {"faces": 5})
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_reports_that_come_together_are_no_rate():
    progress, _, clock = start(30)
    clock.seconds += 20
    progress.add(16, {"faces": 5})
    clock.seconds += 0.01
    progress.add(14, {"faces": 5})
    assert "  1.5 images/s  " in progress.line()


def test_images_that_passed_are_shown_before_they_are_counted():
    progress, stream, clock = start(100)
    clock.seconds += 10
    progress.passed({"images": 20, "faces": 5})
    clock.seconds += 10
    progress.passed({"images": 40, "faces": 11})
    assert (progress.done, progress.line()) == (0, "40 of 100 images (40%)  2.0 images/s  11 faces  0:30 left")
    progress.add(30, {"faces": 9})
    assert (progress.done, progress.line()) == (30, "40 of 100 images (40%)  2.0 images/s  11 faces  0:30 left")
    progress.passed({"images": 35, "faces": 10})          # a process died and began to count again
    assert progress.line() == "40 of 100 images (40%)  2.0 images/s  11 faces  0:30 left"
    clock.seconds += 10
    progress.passed({"images": 130, "faces": 30})         # a block that was repeated is counted twice
    assert progress.line().startswith("100 of 100 images (100%)")
    progress.add(20, {"faces": 1})
    progress.close()
    assert stream.getvalue().splitlines()[-1] == "50 of 100 images (50%)  4.0 images/s  10 faces  0:12 left"
    assert progress.rate_after_start() == 1.5      # 20 images were done when the first were seen


def test_polling_goes_on_after_an_error_and_ends_with_its_block():
    calls, twice = [], threading.Event()

    def poll():
        calls.append(threading.current_thread())
        if len(calls) >= 2:
            twice.set()
        raise RuntimeError("Ray does not answer")

    with polling(poll, every_s=0.01):
        assert twice.wait(20)
    assert not calls[0].is_alive()


def test_the_rate_is_that_of_those_who_do_the_work_if_it_is_known():
    progress, _, clock = start(100)
    clock.seconds += 10
    progress.passed({"images": 20}, 7.5)
    progress.passed({"images": 20})
    assert progress.rate_after_start() == 7.5
