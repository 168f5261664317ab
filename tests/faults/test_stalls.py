"""Runs in which nothing moves: they end, say which pool waits for what, and go on when the obstacle is gone."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.faults.harness import assert_exact, cluster, committed
from tests.faults.proxy import Rule, failing
from tests.faults.stub_job import Faults

TIMEOUT_S = 20
END_S = 60       # on a busy machine


def test_a_stage_that_never_comes_back(on_disk, new_output, starter, figures):
    place, started = new_output(on_disk), time.monotonic()
    job = starter.start_and_reach(lambda job: "nothing has moved for" in job.said(), place, "--stall-timeout",
                                  TIMEOUT_S, faults=Faults(block="30.png"))
    stalled = time.monotonic()
    assert job.wait() == 1, job.said()
    assert time.monotonic() - stalled < END_S
    said = job.said()
    assert "decode+detect+keypoint+align+embed: 1 × (1 CPU, 2 threads): 1 ready" in said
    line = next(line for line in said.splitlines() if ": detect, with " in line)
    assert "/30.png" in line or " more" in line
    assert "1 of 2 CPUs" in said and "object store: " in said
    assert f"nothing has moved for {TIMEOUT_S} s (--stall-timeout)" in said and "the same command goes on" in said
    assert "Traceback" not in said
    kept = committed(place.storage)
    assert kept
    starter.run(place)
    assert_exact(place, on_disk.expected)
    figures("a stage that never comes back", ended_after_s=round(stalled - started), done_before=len(kept), rows_lost=0)


def test_a_file_that_never_arrives(on_s3, new_output, starter, s3_endpoint, figures):
    """It comes a piece every 0.2 s for longer than the watchdog waits, and is named."""
    place = new_output(on_s3)
    with failing(s3_endpoint, Rule("hang", "GET", "/in/20.png")) as (endpoint, _):
        said = starter.run(place, "--stall-timeout", TIMEOUT_S, expect=1, AWS_ENDPOINT_URL=endpoint)
    assert f"reading {place.input}20.png" in said and "the same command goes on" in said
    starter.run(place)
    assert_exact(place, on_s3.expected)
    figures("a file that never arrives", named=1, rows_lost=0)


HOLD_CPUS = """
import os, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
hold = ray.remote(num_cpus=2)(lambda: time.sleep(600))
reference = hold.remote()
while ray.available_resources().get("CPU", 0) > 0.5:
    time.sleep(0.1)
print("held", flush=True)
time.sleep(600)
"""


def test_cpus_that_another_job_holds(on_disk, new_output, starter, figures):
    """Planned for, and taken before its actors start: as of nodes that do not come."""
    place = new_output(on_disk)
    with cluster(num_cpus=2) as nodes:
        holder = subprocess.Popen([sys.executable, "-c", HOLD_CPUS, nodes.address], stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "held\n"
        said = starter.run(
            place, "--shared-filesystem", "--num-cpus", 2, "--stall-timeout", TIMEOUT_S, expect=1,
            RAY_ADDRESS=nodes.address,
        )
        assert "decode+detect+keypoint+align+embed: 1 × (1 CPU, 2 threads): 0 ready" in said
        assert "Ray: 0 of 2 CPUs" in said
        holder.kill()
        holder.wait()
        starter.run(place, "--shared-filesystem", RAY_ADDRESS=nodes.address)
    assert_exact(place, on_disk.expected)
    figures("CPUs that another job holds", explained=1, rows_lost=0)
