"""Runs that stall. They end, say which pool waits for what, and can be resumed."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.faults.harness import assert_exact, committed
from tests.faults.proxy import Rule, failing
from tests.faults.stub_job import Faults

TIMEOUT_S = 25      # on a busy machine an actor takes 15 s to start
END_S = 60       # the limit on a busy machine


def test_a_stage_that_never_returns(on_disk, new_output, shared_ray, figures):
    place, started = new_output(on_disk), time.monotonic()
    job = shared_ray.start_and_reach(lambda job: "no progress for" in job.printed(), place, "--num-cpus", 2,
                                     "--stall-timeout", TIMEOUT_S, faults=Faults(block="30.png"))
    stalled = time.monotonic()
    assert job.wait(END_S) == 1, job.printed()
    printed = job.printed()
    assert "decode+detect+keypoint+align+embed: 1 × (1 CPU, 2 threads): 1 ready" in printed
    line = next(line for line in printed.splitlines() if ": detect, with " in line)
    assert "/30.png" in line or " more" in line
    assert "1 of 2 CPUs" in printed and "object store: " in printed
    assert f"no progress for {TIMEOUT_S} s (--stall-timeout)" in printed
    assert "To resume, run:" in printed and "Traceback" not in printed
    kept = committed(place.storage)
    assert kept
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("a stage that never returns", ended_after_s=round(stalled - started), done_before=len(kept), rows_lost=0)


def test_a_file_that_never_arrives(on_s3, new_output, shared_ray, s3_endpoint, figures):
    """Its first bytes come, then nothing. The message names it."""
    place = new_output(on_s3)
    with failing(s3_endpoint, Rule("hang", "GET", "/in/20.png")) as (endpoint, _):
        printed = shared_ray.run(place.through(endpoint), "--stall-timeout", TIMEOUT_S, expect=1)
    assert f"reading {place.input}20.png" in printed and "To resume, run:" in printed
    shared_ray.run(place)
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


def test_cpus_that_another_job_holds(on_disk, new_output, ray_address, shared_ray, figures):
    """The plan counts on them, but they are not free. The same happens if nodes do not come."""
    place = new_output(on_disk)
    holder = subprocess.Popen([sys.executable, "-c", HOLD_CPUS, ray_address], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        printed = shared_ray.run(place, "--num-cpus", 2, "--stall-timeout", TIMEOUT_S, expect=1)
    finally:
        holder.kill()
        holder.wait()
    assert "decode+detect+keypoint+align+embed: 1 × (1 CPU, 2 threads): 0 ready" in printed
    assert "Ray: 0 of 2 CPUs" in printed
    shared_ray.run(place, "--num-cpus", 2)
    assert_exact(place, on_disk.expected)
    figures("CPUs that another job holds", explained=1, rows_lost=0)
