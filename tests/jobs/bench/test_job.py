import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.job import Commit, JobRounds, commits_of, run_job, wait_for
from jobs.command import Broke

# Stands for jobs.extract: writes an output of seven parts.
FAKE_JOB = """
import json, os, pathlib, sys, time
import pyarrow as pa, pyarrow.parquet as pq
photos, output = map(pathlib.Path, sys.argv[1:3])
assert sys.argv[3:] == ["--pools", "x"] and os.environ["GIVEN"] == "yes"
(output / "images").mkdir()
for i in range(7):
    part = output / "images" / f"part-{i}.parquet"
    pq.write_table(pa.table({"uri": ["a"] * 10}), part)
    os.utime(part, (time.time(), 2e9 + i / 2))
run = {"this_run": {"images": 70, "faces": 140}, "throughput": {"images_per_s_after_start": 20.0}}
(output / "run.json").write_text(json.dumps(run))
"""


def test_commits_come_in_the_order_of_their_times(tmp_path):
    import os

    (tmp_path / "images").mkdir()
    assert commits_of(tmp_path) == []
    for name, rows, moment in (("a", 2, 20.5), ("b", 1, 10.25)):
        pq.write_table(pa.table({"uri": ["u"] * rows}), tmp_path / "images" / f"{name}.parquet")
        os.utime(tmp_path / "images" / f"{name}.parquet", (0, moment))
    assert commits_of(tmp_path) == [Commit(10.25, 1), Commit(20.5, 2)]


def test_a_round_runs_the_job_and_reads_its_output(tmp_path):
    rounds = JobRounds(
        "job: x", tmp_path, ["--pools", "x"], lambda: 50.0, (sys.executable, "-c", FAKE_JOB), {"GIVEN": "yes"}
    )
    [found] = rounds.measure()
    assert (found.name, found.value, found.unit) == ("job: x", 20.0, "images/s")
    assert found.notes["faces"] == 140 and found.notes["in all, s"] > 0


def test_an_interrupted_benchmark_ends_its_job():
    class Sleeper(subprocess.Popen):
        def wait(self, timeout=None):
            if self.poll() is None and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt
            return super().wait(timeout)

    interrupted = []
    job = Sleeper([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(KeyboardInterrupt):
        wait_for(job)
    assert job.returncode == -15


def test_a_job_that_fails_ends_the_benchmark_with_its_words(tmp_path):
    with pytest.raises(Broke, match=r"ended with 1: no such folder\n$"):
        run_job(tmp_path, [], command=(sys.executable, "-c", "raise SystemExit('no such folder')"))


def test_the_figures_of_a_job_can_be_written_as_json(tmp_path):
    rounds = JobRounds("job", tmp_path, ["--pools", "x"], None, (sys.executable, "-c", FAKE_JOB), {"GIVEN": "yes"})
    assert json.loads(json.dumps(rounds.measure()[0].notes))["memory, GB"] >= 0
