import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.run.turns import Turns


class Portion:
    """A thread that takes its turn, and goes on when the test says so."""

    def __init__(self, threads, turns, *, alone=False, fails=False):
        self.begun, self.may_be_decoded, self.may_end = (threading.Event() for _ in range(3))
        self._fails = fails
        self.future = threads.submit(self._run, turns, alone)

    def _run(self, turns, alone):
        with turns.work(alone=alone) as decoded:
            self.begun.set()
            assert self.may_be_decoded.wait(20)
            if self._fails:
                raise ValueError("on demand")
            decoded()
            assert self.may_end.wait(20)

    def waits(self):
        """Whether it has not begun, once it had the time for it."""
        return not self.begun.wait(0.1)

    def end(self):
        self.may_be_decoded.set()
        self.may_end.set()
        self.future.result(20)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(3) as threads:
        yield threads


def test_the_next_one_begins_when_all_is_decoded(threads):
    turns = Turns()
    first = Portion(threads, turns)
    assert first.begun.wait(20)
    second = Portion(threads, turns)
    assert second.waits()
    first.may_be_decoded.set()
    assert second.begun.wait(20) and not first.future.done()
    second.end()
    first.end()


def test_alone_waits_for_all_others_and_keeps_them_waiting(threads):
    turns = Turns()
    first = Portion(threads, turns)
    assert first.begun.wait(20)
    first.may_be_decoded.set()
    alone = Portion(threads, turns, alone=True)
    assert alone.waits()
    first.end()
    assert alone.begun.wait(20)
    last = Portion(threads, turns)
    alone.may_be_decoded.set()
    assert last.waits()
    alone.end()
    last.end()
    assert last.begun.is_set()


@pytest.mark.parametrize("alone", [False, True])
def test_an_error_ends_the_turn(threads, alone):
    turns = Turns()
    failing = Portion(threads, turns, alone=alone, fails=True)
    failing.may_be_decoded.set()
    with pytest.raises(ValueError, match="on demand"):
        failing.future.result(20)
    for kind in (True, False):
        Portion(threads, turns, alone=kind).end()
