"""Two runs on one output: at the same moment, and while the first one is suspended."""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime

import pytest

from pipeline.output import lease, ledger
from pipeline.output.lease import process_start
from pipeline.storage import Storage
from tests.faults.harness import assert_exact, wait_until
from tests.faults.stub_job import Faults

STALE_S = 3.0      # instead of 60, for both runs


def test_of_two_runs_at_the_same_time_one_is_refused(baseline, new_output, shared_ray, figures):
    place = new_output(baseline)
    jobs = [shared_ray.start(place, faults=Faults(image_s=0.1)) for _ in range(2)]
    codes = [job.wait() for job in jobs]
    assert sorted(codes) == [0, 2], "\n".join(job.printed() for job in jobs)
    first, second = (jobs[codes.index(code)] for code in (0, 2))
    run_id = ledger.read_ledger(place.storage, ("uri", "run_id"))["run_id"][0].as_py()
    assert f"run {run_id} (host " in second.printed() and f"pid {first.process.pid}," in second.printed()
    assert "python -m jobs.extract" in second.printed() and "Traceback" not in second.printed()
    assert_exact(place, baseline.expected)
    figures(f"two runs in the same second ({baseline.name})", proceeded=1, refused=1)


def heartbeat_age_s(storage: Storage) -> float:
    """Seconds since the last heartbeat of the run that holds the output."""
    holder = lease.Holder.from_json(storage.read(lease.LEASE_PATH))
    return (datetime.now(UTC) - datetime.fromisoformat(holder.heartbeat)).total_seconds()


def files(storage: Storage) -> dict[str, bytes]:
    """All files of the output but the lease."""
    names = [file.path for folder in ("", "faces", "images", "_rewrite", "_todo") for file in storage.list(folder)]
    return {name: storage.read(name) for name in names if name != lease.LEASE_PATH}


@pytest.mark.parametrize("suspended", ["driver", "all processes"])
def test_a_suspended_run_that_is_taken_over_commits_nothing_more(
    baseline, new_output, own_ray, shared_ray, tmp_path, figures, suspended
):
    """It is suspended while a writer is between the halves of a part, and wakes when another run has finished.

    Where only the driver is suspended it uses the shared Ray, which goes on.
    """
    place = new_output(baseline)
    runner = shared_ray if suspended == "driver" else own_ray
    faults = Faults(image_s=0.05, between_s=1.5, stale_s=STALE_S, marks=str(tmp_path))
    sleeper = runner.start_and_reach(lambda job: len(ledger.committed_parts(place.storage)) >= 2, place, faults=faults)
    between = faults.count("between")
    assert wait_until(lambda: faults.count("between") > between, sleeper)
    pids = sleeper.pids()
    stopped = pids[:1] if suspended == "driver" else pids
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: heartbeat_age_s(place.storage) > STALE_S)
    parts_of_sleeper = set(ledger.committed_parts(place.storage))
    shared_ray.run(place, faults=Faults(stale_s=STALE_S))
    assert_exact(place, baseline.expected)
    before = files(place.storage)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    code = sleeper.wait()
    # After a suspension Ray's processes take each other for dead. Ray may crash before the driver prints anything.
    assert code == 1 or (code < 0 and suspended != "driver"), sleeper.printed()
    if code == 1:
        assert re.search("the run broke.*another run has taken over", sleeper.printed()), sleeper.printed()
    assert wait_until(lambda: not any(map(process_start, pids)), seconds=60)
    assert files(place.storage) == before
    assert_exact(place, baseline.expected)
    figures(f"suspended, taken over, woken ({baseline.name}, {suspended})", parts_before=len(parts_of_sleeper),
            commits_after_the_takeover=0, rows_lost=0)
