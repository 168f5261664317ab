import contextlib
import signal
import threading

import pytest

from pipeline.run.interrupt import Stalled
from pipeline.run.watchdog import SHUTDOWN_S, Watchdog

END_S = 20      # for threads that only have to be scheduled


class FakeClock:
    """Time that passes only while the watchdog sleeps. The time for the shutdown passes only after `hang`."""

    def __init__(self):
        self.time = 0.0
        self.hang = threading.Event()

    def now(self):
        return self.time

    def sleep(self, seconds):
        if seconds == SHUTDOWN_S:
            self.hang.wait()
        self.time += seconds


class Guard:
    """Makes a watchdog that runs on the fake clock, and keeps what it says and how it ends the process."""

    def __init__(self):
        self.clock, self.said, self.exited = FakeClock(), [], threading.Event()

    def __call__(self, timeout_s, snapshot, explain=lambda: ["  because"]):
        return Watchdog(timeout_s, self.said.append, "The same command goes on: x", snapshot, explain,
                        now=self.clock.now, sleep=self.clock.sleep,
                        exit_process=lambda code: code == 1 and self.exited.set())

    def join(self):
        """Wait for the end of the watchdog's thread."""
        for thread in threading.enumerate():
            if thread.name == "watchdog":
                thread.join(END_S)
                assert not thread.is_alive()


@pytest.fixture
def guard():
    guard = Guard()
    yield guard
    guard.clock.hang.set()
    guard.join()


def unchanged():
    return 0


def wait_to_be_stopped():
    assert not threading.Event().wait(END_S), "never set"


def test_a_run_without_progress_ends_and_the_reason_is_printed(guard):
    stalled = pytest.raises(Stalled, match=r"no progress for 10 s \(--stall-timeout\)")
    with stalled, guard(10, unchanged):
        wait_to_be_stopped()
    assert guard.said == ["\nfacelake: no progress for 10 s. What waits for what:", "  because"]
    assert guard.clock.time == pytest.approx(10.5)      # the first snapshot is taken after a twentieth


@pytest.mark.parametrize("every_s", [1, 5, 9])
def test_a_run_with_progress_goes_on(guard, every_s):
    """The snapshot changes within the timeout of 10 s, for 200 s."""
    enough = threading.Event()

    def snapshot():
        if guard.clock.time > 200:
            enough.set()
        return guard.clock.time // every_s

    with guard(10, snapshot):
        assert enough.wait(END_S)
    guard.join()
    assert guard.said == []


def test_a_timeout_of_0_waits_for_ever(guard):
    asked = []
    with guard(0, lambda: asked.append(True)):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert asked == guard.said == []


def test_nothing_is_raised_after_the_end(guard):
    """The run ends while the watchdog asks for an explanation."""
    explaining = threading.Event()

    def explain():
        explaining.set()
        watchdog._ended.wait(END_S)
        return []

    with (watchdog := guard(10, unchanged, explain)):
        assert explaining.wait(END_S)
    guard.join()
    assert guard.said == []


def test_it_ends_only_when_no_call_to_ray_runs_any_more(guard):
    asking, answered = threading.Event(), []

    def snapshot():
        asking.set()
        watchdog._ended.wait(END_S)
        threading.Event().wait(0.2)     # an end that does not wait for this comes first
        answered.append(True)

    with (watchdog := guard(1000, snapshot)):
        assert asking.wait(END_S)
    assert answered == [True]
    guard.join()
    assert answered == [True]


@pytest.mark.parametrize("answer", ["raises", "hangs"])
def test_a_ray_that_does_not_answer_makes_no_progress(guard, answer, monkeypatch):
    monkeypatch.setattr("pipeline.run.watchdog.ANSWER_S", 0.02)
    released = threading.Event()

    def call():
        if answer == "raises":
            raise ZeroDivisionError
        released.wait(END_S)
        return [str(guard.clock.time)]

    with pytest.raises(Stalled), guard(10, call, explain=call):
        wait_to_be_stopped()
    released.set()
    assert guard.said[1] == "  Ray does not answer"


def test_a_process_whose_shutdown_hangs_is_ended(guard):
    guard.clock.hang.set()
    with contextlib.suppress(Stalled), guard(10, unchanged):
        wait_to_be_stopped()
    assert guard.exited.wait(END_S)
    assert guard.said[-1] == (
        "facelake: Ray does not shut down either; the process ends without it. The same command goes on: x")


def test_a_shutdown_in_time_is_left_alone(guard):
    with pytest.raises(Stalled), guard(10, unchanged):
        wait_to_be_stopped()
    assert not guard.exited.is_set() and len(guard.said) == 2


def test_the_signal_of_someone_else_is_no_stall(guard):
    """As Slurm can be told to send it before a job's time ends."""
    progress = iter(range(10**6))
    with guard(10, lambda: next(progress)):
        signal.raise_signal(signal.SIGUSR1)


def test_the_handler_of_before_comes_back(guard):
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stalled), guard(10, unchanged):
        wait_to_be_stopped()
    assert signal.getsignal(signal.SIGUSR1) == before
