"""A Ray head with a dashboard on this machine, for tests that submit jobs to it; and a reader of its metrics."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
# Any local run of Ray 2.60 makes a token for the user. From then on Ray asks for it, and `ray job submit` sends it
# only if RAY_AUTH_MODE says so.
AUTHENTICATED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}


@dataclass(frozen=True)
class Head:
    """The addresses of a Ray head."""

    dashboard: str      # http://host:port
    address: str        # host:port, for RAY_ADDRESS
    metrics: str        # http://host:port/metrics

    def job(self, command: str, *arguments: object) -> list[str]:
        """The command line of `ray job <command>` for this head."""
        return [RAY, "job", command, "--address", self.dashboard, *map(str, arguments)]


@contextmanager
def start_head(*arguments: str, port: int | None = None, **environment: str) -> Iterator[Head]:
    """Run `ray start --head` with more arguments and variables. The end kills this Ray and no other."""
    port, dashboard_port, metrics_port = port or free_port(), free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard_port}",
               f"--metrics-export-port={metrics_port}", f"--dashboard-agent-listen-port={free_port()}",
               "--disable-usage-stats", *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, cwd=ROOT, env=variables | AUTHENTICATED | environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    head = Head(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
    try:
        deadline = time.monotonic() + 120
        while not answers(head.dashboard):
            assert time.monotonic() < deadline and process.poll() is None, "the head did not come up"
            time.sleep(0.5)
        yield head
    finally:
        descendants = psutil.Process(process.pid).children(recursive=True)
        for descendant in descendants:           # a clean stop takes half a minute
            descendant.kill()
        process.kill()
        psutil.wait_procs(descendants, timeout=30)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(dashboard: str) -> bool:
    try:
        urllib.request.urlopen(f"{dashboard}/api/version", timeout=2)
    except urllib.error.HTTPError:      # it is up and asks for the token
        return True
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Metric:
    """One of facelake's metrics as Prometheus reads it: its name without `ray_facelake_`, labels, value."""

    name: str
    labels: dict[str, str]
    value: float


def scrape(metrics_url: str) -> list[Metric]:
    """All metrics of facelake that a node exports."""
    text = urllib.request.urlopen(metrics_url, timeout=10).read().decode()
    return [Metric(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for name, labels, value in re.findall(r"^ray_facelake_(\w+){(.*)} (\S+)$", text, re.MULTILINE)]


def totals(metrics: list[Metric], label: str) -> dict[str, float]:
    """Sums over all processes, per value of `label`. The label "name" stands for the metric's name."""
    sums: dict[str, float] = {}
    for metric in metrics:
        if (key := {"name": metric.name, **metric.labels}.get(label)) is not None:
            sums[key] = sums.get(key, 0.0) + metric.value
    return sums
