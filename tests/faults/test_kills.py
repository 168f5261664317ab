"""kill -9 of the driver at random moments: the same command goes on, and at the end nothing tells of it."""

from __future__ import annotations

import random
import time

import pytest

from pipeline.output import lease, ledger
from pipeline.storage import Storage
from tests.faults.harness import Job, assert_exact, committed, wait_until
from tests.faults.stub_job import Faults

SLOW = {"image_s": 0.03, "between_s": 0.05}
CHAIN = 5       # kills within one output, one after the other


def holder(storage: Storage) -> str | None:
    """The run that holds the output's lease."""
    try:
        found = lease.Holder.from_json(storage.read(lease.LEASE_PATH))
    except FileNotFoundError:
        return None
    return found.run_id if found and not found.released else None


class Moments:
    """When to kill: phases of a run, each with a random moment in it."""

    PHASES = ("start", "lease", "Ray", "first part", "parts", "parts", "halves", "halves", "last part", "end")

    def __init__(self, seed: int, chain: int) -> None:
        self._random = random.Random(seed)
        # All phases in two chains.
        shuffled = random.Random(chain // 2).sample(self.PHASES, len(self.PHASES))
        self.phases = shuffled[:CHAIN] if chain % 2 else shuffled[CHAIN:]

    def wait(self, phase: str, job: Job, storage: Storage, faults: Faults, images: int) -> bool:
        """Until a random moment in that phase of the job; False if the job has ended before."""
        before, done_before = holder(storage), len(committed(storage))
        wanted = min(done_before + self._random.randint(2, 24), images - 6)
        parts_before = len(ledger.committed_parts(storage))
        marks_before = faults.count("between")
        after_s = {"start": 2.0, "lease": 0.3, "Ray": 5.0, "halves": 0.05, "end": 0.6}.get(phase, 0.15)
        reached = {
            "start": lambda: True,
            "lease": lambda: holder(storage) not in (None, before),
            "Ray": lambda: "to do" in job.said(),
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
def test_the_driver_is_killed_again_and_again(tried, new_output, request, tmp_path, figures, chain):
    """The driver alone, of a Ray that stays, or all processes of a Ray of its own."""
    starter = request.getfixturevalue("starter" if chain % 2 else "joining")
    place, seed = new_output(tried), random.randrange(10**6)
    moments = Moments(seed, chain)
    faults = Faults(**SLOW, marks=str(tmp_path))
    kept = set()
    for phase in moments.phases:
        job = starter.start(place, faults=faults)
        while not moments.wait(phase, job, place.storage, faults, place.images):
            assert job.process.returncode == 0, f"seed {seed}, {phase}: {job.said()}"
            assert_exact(place, tried.expected)            # it was quicker than the killer: anew with a new output
            place, kept = new_output(tried, f"after {phase}"), set()
            job = starter.start(place, faults=faults)
        if chain % 2:
            job.kill_all()
        else:
            job.kill_driver()
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}, {phase}: {kept - now} were done and are not any more"
        kept = now
    starter.run(place)
    assert_exact(place, tried.expected)
    figures(f"driver killed ({tried.name}, {'all processes' if chain % 2 else 'driver alone'})", kills=CHAIN,
            survived=CHAIN, rows_lost=0, in_phases="/".join(moments.phases), seed=seed)
