"""`ray job submit` against a real head on this machine, as on a cluster."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ray_head import AUTHENTICATED, ROOT, start_head

ASSETS = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0]) / "assets"


@pytest.fixture(scope="module")
def head():
    with start_head("--num-cpus=2") as head:
        yield head


def test_submitted_with_the_repository_as_working_dir(head, tmp_path):
    command = head.job("submit", "--working-dir", ROOT, "--", sys.executable, "-m", "jobs.extract", ASSETS,
                       tmp_path / "out")
    environment = os.environ | AUTHENTICATED
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert "ok 2" in result.stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text())["output"]["ok"] == 2
    assert pq.read_table(tmp_path / "out" / "faces").num_rows >= 4


def test_joining_the_cluster_ships_the_code(head, tmp_path):
    """From a folder that is not the repository, so the workers have the code only if it was sent to them."""
    command = [sys.executable, "-m", "jobs.extract", str(ASSETS / "zidane.jpg"), str(tmp_path / "out")]
    environment = os.environ | AUTHENTICATED | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "out" / "images")["status"].to_pylist() == ["ok"]
