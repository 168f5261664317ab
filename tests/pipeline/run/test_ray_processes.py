"""Plain processes stand for those of Ray."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from pipeline.run import interrupt
from pipeline.run.interrupt import Interrupted, RayLost, interruptible
from pipeline.run.ray_processes import ProcessWatch, in_own_groups, services_here

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def service():
    process = subprocess.Popen(SLEEP)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def watch(service, said, ended, connected=lambda: True, **seconds):
    return ProcessWatch(
        [service], said.append, "Resume.", connected=connected, look_s=0.01, exit_process=ended.append, **seconds
    )


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_loss_of_a_service_ends_the_run(service):
    said, ended, before = [], [], signal.getsignal(signal.SIGUSR2)
    lost = pytest.raises(RayLost, match="of Ray ended, perhaps killed by the system for lack of memory")
    with lost, watch(service, said, ended, loss_s=60) as watched:
        service.kill()
        wait_until(lambda: False)
    assert watched.close()
    assert (said, ended, signal.getsignal(signal.SIGUSR2)) == ([], [], before)


def test_a_main_thread_that_hangs_is_ended(service):
    said, ended = [], []
    with watch(service, said, ended, loss_s=0.05) as watched:
        assert not watched.close()      # the caller ends Ray, and hangs
        service.kill()
        wait_until(lambda: ended)
    [line] = said
    assert line.startswith("\nfacelake: the run broke: ") and line.endswith("(see dmesg). Resume.") and ended == [1]


def test_a_run_that_hangs_after_a_signal_ends_as_after_the_signal(service):
    said, ended = [], []
    with pytest.raises(Interrupted), interruptible(), watch(service, said, ended, signal_s=0.05):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            wait_until(lambda: ended)
    assert said == ["\nfacelake: interrupted: Ray does not shut down, so the process ends without it. Resume."]
    assert ended == [143]
    wait_until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE)      # what hangs is killed


def test_nothing_happens_while_all_services_run(service):
    said, ended, threads = [], [], threading.active_count()
    with watch(service, said, ended, loss_s=0, signal_s=0) as watched:
        time.sleep(0.1)
        assert not watched.close()
    wait_until(lambda: threading.active_count() == threads)
    assert (said, ended) == ([], []) and service.is_running()


def test_a_ray_that_someone_else_ends_is_not_lost(service):
    said, ended, threads = [], [], threading.active_count()
    with watch(service, said, ended, connected=lambda: False, loss_s=0) as watched:
        service.kill()
        wait_until(lambda: threading.active_count() == threads)
        assert not watched.close()
    assert (said, ended) == ([], [])


def test_a_signal_is_known_until_the_command_ends():
    with pytest.raises(Interrupted), interruptible():
        assert interrupt.asked_to_end() is None
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            assert interrupt.asked_to_end() == signal.SIGINT
    assert interrupt.asked_to_end() is None


def test_processes_of_ray_lead_groups_of_their_own():
    from ray._private import services

    popen = services.ConsolePopen
    with in_own_groups():
        process = services.ConsolePopen(SLEEP)
    try:
        assert services.ConsolePopen is popen
        assert os.getpgid(process.pid) == process.pid != os.getpgrp()
        assert process.pid not in [service.pid for service in services_here()]      # by their names
    finally:
        process.kill()
        process.wait()
