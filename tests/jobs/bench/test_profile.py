import json
import subprocess
import sys

import pytest

from jobs.bench.profile import trace, wait_for_actor
from jobs.command import Broke
from tests.support.photos import ASSETS


def test_the_actor_is_found_among_the_processes_of_the_job():
    named = "import sys, time; print(flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run(['ray::MapWorker(MapBatches(Pool))', '-c', {named!r}], executable=sys.executable)"
    )
    job = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    job.stdout.read(1)
    pid = wait_for_actor(job)
    assert pid != job.pid
    subprocess.run(["kill", str(pid)], check=True)
    job.wait()
    with pytest.raises(Broke, match="no actor"):
        wait_for_actor(job)


def test_a_trace_names_what_ran(tmp_path):
    content = json.loads(trace(ASSETS, "cpu", tmp_path / "trace.json").read_text())
    assert content["traceEvents"]
