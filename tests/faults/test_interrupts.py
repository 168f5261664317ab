"""Ctrl-C and SIGTERM, once and twice, at several moments: the end within seconds, and the line to resume."""

from __future__ import annotations

import os
import random
import signal
import time

from pipeline.output import lease
from tests.faults.harness import assert_exact, committed, wait_until
from tests.faults.stub_job import Faults

END_S = 20      # of a machine that is busy with Ray; two to four where it is not

# When; which signal; to the driver alone, or as a terminal does it to all processes of the group; how often.
CASES = [
    ("first part", signal.SIGTERM, "driver", 1),
    ("parts", signal.SIGINT, "group", 2),
    ("end", signal.SIGINT, "driver", 2),
]


def test_interrupted_again_and_again(on_disk, new_output, starter, tmp_path, figures):
    place, seed, slowest_s, kept = new_output(on_disk), random.randrange(10**6), 0.0, set()
    moments = random.Random(seed)
    for when, number, whom, times in CASES:
        job = starter.start(place, faults=Faults(image_s=0.1, marks=str(tmp_path)))
        done = len(committed(place.storage))
        reached = {
            "first part": lambda: len(committed(place.storage)) > 0,
            "parts": lambda done=done: len(committed(place.storage)) >= done + 8,
            "end": lambda: len(committed(place.storage)) >= place.images - 6,
        }[when]
        assert wait_until(reached, job), f"seed {seed}, {when}: the run ended before the signal: {job.said()}"
        time.sleep(moments.uniform(0, 0.2))
        sent = time.monotonic()
        for _ in range(times):
            (os.killpg if whom == "group" else os.kill)(job.process.pid, number)
            time.sleep(0.3)
        code, took_s = job.wait(), time.monotonic() - sent
        assert code == 128 + number, f"seed {seed}, {when}: {job.said()}"
        assert took_s < END_S, f"seed {seed}, {when}: it took {took_s:.1f} s"
        slowest_s = max(slowest_s, took_s)
        said = job.said()
        assert "interrupted. What was committed stays" in said and "the same command goes on from there: " in said
        assert "Traceback" not in said and place.output in said
        now = committed(place.storage)
        assert kept <= now, f"seed {seed}, {when}"
        kept = now
        holder = lease.Holder.from_json(place.storage.read(lease.LEASE_PATH))
        assert holder.released
    starter.run(place)
    assert_exact(place, on_disk.expected)
    figures("interrupted", signals=sum(times for *_, times in CASES), runs=len(CASES),
            slowest_end_s=round(slowest_s, 1), rows_lost=0, seed=seed)


def test_interrupted_while_ray_starts(on_disk, new_output, starter, figures):
    """At moments all over its start, in whose C++ an exception would hang or crash."""
    place, moments, start_s, slowest_s = new_output(on_disk), 6, 0.0, 0.0
    for moment in range(moments, 0, -1):             # the first only measures, and is interrupted when Ray is up
        job = starter.start(place)
        assert wait_until(lambda job=job: "to do" in job.said(), job), job.said()
        begun = time.monotonic()
        if start_s:
            time.sleep(start_s * moment / moments)
        else:
            assert wait_until(lambda job=job: "Planned" in job.said(), job), job.said()
            start_s = time.monotonic() - begun
        sent = time.monotonic()
        if moment % 2:
            number = signal.SIGTERM
            job.process.send_signal(number)
        else:
            number = signal.SIGINT
            os.killpg(job.process.pid, number)
        code, slowest_s = job.wait(END_S * 2), max(slowest_s, time.monotonic() - sent)
        assert code == 128 + number, f"{moment} of {moments} × {start_s:.1f} s: {job.said()}"
        assert "the same command goes on from there" in job.said() and "Traceback" not in job.said()
    starter.run(place)
    assert_exact(place, on_disk.expected)
    figures("interrupted while Ray starts", signals=moments, runs=moments, slowest_end_s=round(slowest_s, 1),
            rows_lost=0)


def test_interrupted_while_it_lists(s3_endpoint, starter, tmp_path, figures):
    """A store that trickles: the listing has not come to its end."""
    from tests.faults.harness import Place
    from tests.faults.proxy import Rule, failing

    place = Place("s3://nobody/in/", str(tmp_path / "out"), 0)
    with failing(s3_endpoint, Rule("SlowDown")) as (endpoint, proxy):
        job = starter.start(place, AWS_ENDPOINT_URL=endpoint)
        assert wait_until(lambda: proxy.injected["SlowDown"] > 0, job)
        sent = time.monotonic()
        job.process.send_signal(signal.SIGINT)
        assert job.wait() == 128 + signal.SIGINT, job.said()
    assert time.monotonic() - sent < END_S and "the same command goes on from there" in job.said()
    assert "Traceback" not in job.said() and not (tmp_path / "out").exists()
    figures("interrupted while it lists", signals=1)
