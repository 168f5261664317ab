"""`ray job submit` against a real head on this machine, as on a cluster."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
ASSETS = Path(importlib.util.find_spec("ultralytics").submodule_search_locations[0]) / "assets"
# Ray 2.60 asks for a token once the user has one, and any local run makes one; `ray job submit` must be told so.
AUTHENTICATED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
RAY = str(Path(sys.executable).parent / "ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address):
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2)
    except urllib.error.HTTPError:      # it wants the token that ray's own commands send
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def dashboard():
    """A head of its own, ended as a whole without touching other Rays of this machine."""
    port, dashboard_port = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
               f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={free_port()}",
               "--disable-usage-stats"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | AUTHENTICATED
    head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard_port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(address):
            assert time.monotonic() < deadline and head.poll() is None, "the head did not come up"
            time.sleep(0.5)
        yield address, f"127.0.0.1:{port}"
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        for process in [*below, head]:           # asked kindly, it takes half a minute
            process.kill()
        psutil.wait_procs(below, timeout=30)
        head.wait(30)


def test_submitted_with_the_repository_as_working_dir(dashboard, tmp_path):
    command = [RAY, "job", "submit", "--address", dashboard[0], "--working-dir", str(ROOT), "--",
               sys.executable, "-m", "jobs.extract", str(ASSETS), str(tmp_path / "out")]
    environment = os.environ | AUTHENTICATED
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert "ok 2" in result.stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text())["output"]["ok"] == 2
    assert pq.read_table(tmp_path / "out" / "faces").num_rows >= 4


def test_joining_the_cluster_ships_the_code(dashboard, tmp_path):
    """From a folder that is not the repository, so the workers have the code only if it was sent to them."""
    command = [sys.executable, "-m", "jobs.extract", str(ASSETS / "zidane.jpg"), str(tmp_path / "out")]
    environment = os.environ | AUTHENTICATED | {"RAY_ADDRESS": dashboard[1], "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "out" / "images")["status"].to_pylist() == ["ok"]
