"""kill -9 of the driver at random moments. The same command resumes, and the output is exact at the end."""

from __future__ import annotations

import random
import time

import pytest

from pipeline.output import lease, ledger
from pipeline.storage import Storage
from tests.faults.harness import Job, assert_exact, committed, wait_until
from tests.faults.stub_job import Faults

SLOW = {"image_s": 0.03, "between_s": 0.05}
CHAIN = 5       # kills of runs on one output, one after the other


def holder(storage: Storage) -> str | None:
    """The run that holds the lease of the output."""
    try:
        found = lease.Holder.from_json(storage.read(lease.LEASE_PATH))
    except FileNotFoundError:
        return None
    return found.run_id if found and not found.released else None


class Moments:
    """When to kill: the phases of a run, and a random moment in each."""

    PHASES = ("start", "lease", "Ray", "first part", "parts", "parts", "halves", "halves", "last part", "end")

    def __init__(self, seed: int, chain: int) -> None:
        self._random = random.Random(seed)
        # Two chains together have all phases.
        shuffled = random.Random(chain // 2).sample(self.PHASES, len(self.PHASES))
        self.phases = shuffled[:CHAIN] if chain % 2 else shuffled[CHAIN:]

    def wait(self, phase: str, job: Job, storage: Storage, faults: Faults, images: int) -> bool:
        """Wait until a random moment in the phase; returns False if the job ends first."""
        before, done_before = holder(storage), len(committed(storage))
        wanted = min(done_before + self._random.randint(2, 24), images - 6)
        parts_before = len(ledger.committed_parts(storage))
        marks_before = faults.count("between")
        after_s = {"start": 2.0, "lease": 0.3, "Ray": 5.0, "halves": 0.05, "end": 0.6}.get(phase, 0.15)
        reached = {
            "start": lambda: True,
            "lease": lambda: holder(storage) not in (None, before),
            "Ray": lambda: "to do" in job.printed(),
            "first part": lambda: len(ledger.committed_parts(storage)) > parts_before,
            "parts": lambda: len(committed(storage)) >= wanted,
            "halves": lambda: faults.count("between") > marks_before,
            "last part": lambda: len(committed(storage)) >= images - 6,
            "end": lambda: len(committed(storage)) == images - 2,
        }[phase]
        if not wait_until(reached, job):
            return False
        time.sleep(self._random.uniform(0, after_s))
        return True


@pytest.mark.parametrize("chain", range(4))
def test_the_driver_is_killed_several_times(baseline, new_output, own_ray, shared_ray, tmp_path, figures, chain):
    """Even chains kill only the driver, which uses the shared Ray. Odd chains kill it with all of its own Ray."""
    runner = own_ray if chain % 2 else shared_ray
    place, seed = new_output(baseline), random.randrange(10**6)
    moments = Moments(seed, chain)
    faults = Faults(**SLOW, marks=str(tmp_path))
    kept, slow_starts = set(), 0
    for phase in moments.phases:
        job = runner.start(place, faults=faults)
        while not moments.wait(phase, job, place.storage, faults, place.images):
            if job.ray_was_slow():
                slow_starts += 1
                assert slow_starts < 6, f"Ray does not start: {job.printed()}"
            else:
                assert job.process.returncode == 0, f"seed {seed}, {phase}: {job.printed()}"
                assert_exact(place, baseline.expected)  # the run ended before the kill: try again with a new output
                place, kept = new_output(baseline, f"after {phase}"), set()
            job = runner.start(place, faults=faults)
        if chain % 2:
            job.kill_all()
        else:
            job.kill_driver()
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}, {phase}: {kept - now} were committed and are gone"
        kept = now
    shared_ray.run(place)
    assert_exact(place, baseline.expected)
    figures(f"driver killed ({baseline.name}, {'all processes' if chain % 2 else 'driver alone'})", kills=CHAIN,
            survived=CHAIN, rows_lost=0, in_phases="/".join(moments.phases), seed=seed)
