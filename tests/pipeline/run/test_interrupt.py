import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from pipeline.run.interrupt import Interrupted, held_back, interruptible


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_signals_raise_once(number, exit_code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupt, interruptible():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGINT)      # a second Ctrl-C is ignored
    assert interrupt.value.exit_code == exit_code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("refers_to_itself", [False, True])
def test_an_object_whose_construction_is_interrupted_prints_nothing_when_it_is_freed(monkeypatch, refers_to_itself):
    printed, freed = [], []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    show = sys.unraisablehook

    class Dataset:
        def __init__(self):
            if refers_to_itself:
                self.itself = self
            signal.raise_signal(signal.SIGINT)
            self.executor = None

        def __del__(self):
            freed.append(True)
            assert self.executor is None

    with interruptible(), suppress(Interrupted):
        Dataset()
    assert freed and not printed and sys.unraisablehook == show


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_held_back_signal_comes_at_the_end_although_others_set_handlers(number, exit_code):
    done = []
    with pytest.raises(Interrupted) as interrupt, interruptible(), held_back():
        signal.signal(number, lambda *_: os._exit(15))
        signal.raise_signal(number)
        signal.alarm(60)                             # as the C++ of Ray does, to abort
        done.append("all of it")
    assert interrupt.value.exit_code == exit_code
    assert done and signal.alarm(0) == 0


def test_an_alarm_that_comes_with_a_signal_is_ended_while_python_waits_for_c():
    """As in the start of Ray: after a SIGTERM its C++ sets an alarm that is to abort the process, and goes on."""
    code = """if True:
        import hashlib, os, signal, threading
        from pipeline.run.interrupt import Interrupted, held_back, interruptible
        ended = threading.Event()

        def end():
            signal.alarm(1)
            os.kill(os.getpid(), signal.SIGTERM)

        def count():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            threading.Timer(0.1, end).start()
            while not ended.is_set():
                hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000)         # a second in which no handler runs

        try:
            with interruptible(), held_back():
                threading.Timer(1.5, ended.set).start()
                count()
        except Interrupted as interrupt:
            print(interrupt.exit_code)
    """
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "143\n", "")


def test_without_a_signal_nothing_is_held_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with held_back():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before[:2]
    assert signal.signal(signal.SIGUSR1, before[2]) == signal.SIG_IGN


def test_a_signal_during_the_exit_is_ignored():
    code = """if True:
        import atexit, signal
        from pipeline.run.interrupt import leave
        atexit.register(lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGTERM), print("end")))
        leave(3)
    """
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (3, "end\n", "")


def test_a_forked_process_exits_without_output(capfd):
    context = multiprocessing.get_context("fork")
    with interruptible():
        forked = context.Process(target=signal.raise_signal, args=(signal.SIGINT,))
        forked.start()
        forked.join()
    assert forked.exitcode == 130
    assert capfd.readouterr().err == ""
