"""Ctrl-C and SIGTERM, once and twice, at several moments. The run ends within seconds and says how to resume."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import psutil

from pipeline.output import lease
from tests.faults.harness import Place, assert_exact, committed, wait_until
from tests.faults.proxy import Rule, failing
from tests.faults.stub_job import Faults

END_S = 20      # the limit on a busy machine; an idle one takes two to four

# The moment; the signal; who gets it: the driver, or its process group, as from a terminal or GNU timeout; how often.
CASES = [
    ("first part", signal.SIGTERM, "driver", 1),
    ("parts", signal.SIGINT, "group", 2),
    ("parts", signal.SIGTERM, "group", 1),
    ("end", signal.SIGINT, "driver", 2),
]


def test_a_run_is_interrupted_several_times(on_disk, new_output, own_ray, shared_ray, tmp_path, figures):
    place, seed, slowest_s, kept = new_output(on_disk), random.randrange(10**6), 0.0, set()
    moments = random.Random(seed)
    for when, number, target, times in CASES:
        job = own_ray.start(place, faults=Faults(image_s=0.1, marks=str(tmp_path)))
        done = len(committed(place.storage))
        reached = {
            "first part": lambda: len(committed(place.storage)) > 0,
            "parts": lambda done=done: len(committed(place.storage)) >= done + 8,
            "end": lambda: len(committed(place.storage)) >= place.images - 6,
        }[when]
        assert wait_until(reached, job), f"seed {seed}, {when}: the run ended before the signal: {job.printed()}"
        time.sleep(moments.uniform(0, 0.2))
        sent = time.monotonic()
        for _ in range(times):
            (os.killpg if target == "group" else os.kill)(job.process.pid, number)
            time.sleep(0.3)
        code, took_s = job.wait(END_S), time.monotonic() - sent
        assert code == 128 + number, f"seed {seed}, {when}: {job.printed()}"
        slowest_s = max(slowest_s, took_s)
        printed = job.printed()
        assert "interrupted. Committed images are kept. To resume, run: " in printed and place.output in printed
        assert "Traceback" not in printed
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}, {when}"
        kept = now
        holder = lease.Holder.from_json(place.storage.read(lease.LEASE_PATH))
        assert holder.released
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("interrupted", signals=sum(times for *_, times in CASES), runs=len(CASES),
            slowest_end_s=round(slowest_s, 1), rows_lost=0, seed=seed)


def test_a_run_is_interrupted_while_ray_starts(on_disk, new_output, own_ray, shared_ray, figures):
    """At six moments of the start. Ray's C++ code would hang or crash if an exception were raised into it."""
    place, moments, start_s, slowest_s = new_output(on_disk), 6, 0.0, 0.0
    for moment in range(moments, 0, -1):   # the first run measures the start and is interrupted at its end
        job = own_ray.start(place)
        assert wait_until(lambda job=job: "to do" in job.printed(), job), job.printed()
        begun = time.monotonic()
        if start_s:
            time.sleep(start_s * moment / moments)
        else:
            assert wait_until(lambda job=job: "Planned" in job.printed(), job), job.printed()
            start_s = time.monotonic() - begun
        sent = time.monotonic()
        if moment % 2:
            number = signal.SIGTERM
            (os.killpg if moment == 3 else os.kill)(job.process.pid, number)
        else:
            number = signal.SIGINT
            os.killpg(job.process.pid, number)
        code, slowest_s = job.wait(END_S * 2), max(slowest_s, time.monotonic() - sent)
        assert code == 128 + number, f"{moment} of {moments} × {start_s:.1f} s: {job.printed()}"
        assert "Committed images are kept. To resume, run:" in job.printed() and "Traceback" not in job.printed()
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("interrupted while Ray starts", signals=moments, runs=moments, slowest_end_s=round(slowest_s, 1),
            rows_lost=0)


def test_a_run_is_interrupted_while_it_lists(s3_endpoint, own_ray, tmp_path, figures):
    """The store throttles every request, so the listing does not end."""
    place = Place("s3://nobody/in/", str(tmp_path / "out"), 0)
    with failing(s3_endpoint, Rule("SlowDown")) as (endpoint, proxy):
        job = own_ray.start(place, AWS_ENDPOINT_URL=endpoint)
        assert wait_until(lambda: proxy.injected["SlowDown"] > 0, job)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(END_S) == 128 + signal.SIGINT, job.printed()
    assert "Committed images are kept. To resume, run:" in job.printed()
    assert "Traceback" not in job.printed()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_lease.json", ".lock"}
    assert json.loads((tmp_path / "out/_lease.json").read_text())["released"]
    figures("interrupted while it lists", signals=1)


def test_a_lost_service_of_ray_ends_the_run(on_disk, new_output, own_ray, shared_ray, tmp_path, figures):
    """Ray itself would hang for a minute, and then end the process without a word."""
    place, slowest_s = new_output(on_disk), 0.0
    for name in ("gcs_server", "raylet"):
        job = own_ray.start(place, faults=Faults(image_s=0.1, marks=str(tmp_path)))
        done = len(committed(place.storage))
        assert wait_until(lambda done=done: len(committed(place.storage)) > done, job), job.printed()
        [service] = [each for each in psutil.Process(job.process.pid).children() if each.name() == name]
        service.kill()
        killed = time.monotonic()
        assert job.wait(END_S * 2) == 1, job.printed()
        slowest_s = max(slowest_s, time.monotonic() - killed)
        assert f"the run broke: {name} of Ray ended" in job.printed() and "To resume, run: " in job.printed()
        assert "Traceback" not in job.printed()
    shared_ray.run(place)
    assert_exact(place, on_disk.expected)
    figures("a service of Ray lost", kills=2, slowest_end_s=round(slowest_s, 1), rows_lost=0)
