import json
import sys

import pytest

from jobs.bench.start import Start

# Stands for jobs.extract: writes one part, and notes its options and where its caches lie.
FAKE_JOB = """
import json, os, pathlib, sys, tempfile
import pyarrow as pa, pyarrow.parquet as pq
photos, output = map(pathlib.Path, sys.argv[1:3])
with (photos / "runs").open("a") as runs:
    print(json.dumps([sys.argv[3:], tempfile.gettempdir(), os.environ.get("RAY_TMPDIR")]), file=runs)
(output / "images").mkdir()
pq.write_table(pa.table({"uri": ["a", "b"]}), output / "images" / "part-0.parquet")
(output / "run.json").write_text("{}")
"""


@pytest.mark.parametrize(
    ("variant", "rows", "runs"),
    [
        ("", [
            "start: jobs.extract of two photos", "start: Ray with one idle actor", "start: the ratio of both",
        ], ["warm"]),
        ("--x", ["start: jobs.extract of two photos, --x"], ["warm"]),
        ("--x --compile", [
            "start: jobs.extract of two photos, --x --compile",
            "start: jobs.extract of two photos, --x --compile, with an empty cache",
        ], ["warm", "empty"]),
    ],
)
def test_rows_of_a_start(tmp_path, monkeypatch, variant, rows, runs):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    bare = [sys.executable, "-c", "pass"]
    start = Start(tmp_path, variant.split(), variant, bare, (sys.executable, "-c", FAKE_JOB))
    found = start.measure()
    assert [row.name for row in found] == rows and start.name == rows[0]
    assert [row.unit for row in found if row.name != "start: the ratio of both"] == ["s"] * len(set(rows) - {
        "start: the ratio of both"
    })
    noted = [json.loads(line) for line in (tmp_path / "runs").read_text().splitlines()]
    assert [options for options, *_ in noted] == [variant.split()] * len(runs)
    # Ray's own folder stays: only the job's caches are empty.
    usual = noted[0][1]
    assert [(folder == usual, ray) for _, folder, ray in noted] == [
        (run == "warm", None if run == "warm" else usual) for run in runs
    ]


def test_the_ratio_is_that_of_the_same_round(tmp_path):
    bare = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    job, alone, ratio = Start(tmp_path, [], "", bare, (sys.executable, "-c", FAKE_JOB)).measure()
    assert alone.value >= 0.2 and ratio.value == pytest.approx(job.value / alone.value)
