"""Two runs on one output: at the same moment, and after a long sleep of the first."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from pipeline.output import lease, ledger
from pipeline.output.lease import process_start
from tests.faults.harness import assert_exact, wait_until
from tests.faults.stub_job import Faults

STALE_S = 6.0      # instead of 60, for both runs


def test_of_two_runs_in_the_same_second_exactly_one_proceeds(tried, new_output, joining, figures):
    place = new_output(tried)
    jobs = [joining.start(place, faults=Faults(image_s=0.1)) for _ in range(2)]
    codes = [job.wait() for job in jobs]
    assert sorted(codes) == [0, 2], "\n".join(job.said() for job in jobs)
    first, second = (jobs[codes.index(code)] for code in (0, 2))
    run_id = ledger.read_ledger(place.storage, ("uri", "run_id"))["run_id"][0].as_py()
    assert f"run {run_id} (host " in second.said() and f"pid {first.process.pid}," in second.said()
    assert "python -m jobs.extract" in second.said() and "Traceback" not in second.said()
    assert_exact(place, tried.expected)
    figures(f"two runs in the same second ({tried.name})", proceeded=1, refused=1)


def files(storage) -> dict[str, bytes]:
    """All files of the tables and what stands beside them, but for the lease."""
    names = [file.path for folder in ("", "faces", "images", "_rewrite", "_todo") for file in storage.list(folder)]
    return {name: storage.read(name) for name in names if name != lease.LEASE_PATH}


@pytest.mark.parametrize("asleep", ["driver", "all processes"])
def test_a_run_that_sleeps_through_a_takeover_commits_nothing_more(
    tried, new_output, request, tmp_path, figures, asleep
):
    """Suspended while a writer is between the halves of a pair, woken when another run has finished.

    The driver alone joins a Ray that stays, which does not sleep.
    """
    starter = request.getfixturevalue("joining" if asleep == "driver" else "starter")
    place = new_output(tried)
    faults = Faults(image_s=0.05, between_s=1.5, stale_s=STALE_S, marks=str(tmp_path))
    sleeper = starter.start_and_reach(lambda job: len(ledger.committed_parts(place.storage)) >= 2, place, faults=faults)
    between = faults.count("between")
    assert wait_until(lambda: faults.count("between") > between, sleeper)
    pids = sleeper.pids()
    stopped = pids[:1] if asleep == "driver" else pids
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(STALE_S)
    parts_of_sleeper = set(ledger.committed_parts(place.storage))
    starter.run(place, faults=Faults(stale_s=STALE_S))
    assert_exact(place, tried.expected)
    before = files(place.storage)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    code = sleeper.wait()
    # Ray's own parts take each other for dead after such a sleep; it may crash before the driver can say a word.
    assert code == 1 or (code < 0 and asleep != "driver"), sleeper.said()
    if code == 1:
        assert re.search("the run broke.*another run has taken over", sleeper.said()), sleeper.said()
    assert wait_until(lambda: not any(map(process_start, pids)), seconds=60)
    assert files(place.storage) == before
    assert_exact(place, tried.expected)
    figures(f"suspended, taken over, woken ({tried.name}, {asleep})", parts_before=len(parts_of_sleeper),
            commits_after_the_takeover=0, rows_lost=0)
