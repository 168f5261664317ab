"""`jobs.bench all --profile`: what one actor spends its time with."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from jobs.bench.in_process import build_stages, default_config, no_seconds, photo_rows, run_stages
from jobs.bench.job import EXTRACT, wait_for
from jobs.command import Broke
from pipeline.errors import UserError

ACTOR = "ray::MapWorker(MapBatches(Pool))"      # what Ray calls the process of an actor
START_S = 300.0             # at most, until an actor is there
LOOK_S = 0.2


def profile_job(photos: Path, device: str, out: Path) -> None:
    """Write a flame graph of an actor, or on CUDA a trace of torch's profiler of the same stages in this process."""
    out.mkdir(parents=True, exist_ok=True)
    made = trace(photos, device, out / "trace.json") if device == "cuda" else flame_graph(photos, out / "actor.svg")
    print(made)


def trace(photos: Path, device: str, file: Path) -> Path:
    """All stages over the photos, after a warm-up. Open the file in chrome://tracing or ui.perfetto.dev."""
    import torch.profiler

    stages, rows = build_stages(default_config(device)), photo_rows(str(photos))
    list(run_stages(stages, rows, no_seconds()))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler: Any = torch.profiler.profile(activities=activities)
    with profiler:
        list(run_stages(stages, rows, no_seconds()))
    profiler.export_chrome_trace(str(file))
    return file


def flame_graph(photos: Path, file: Path) -> Path:
    """py-spy on the first actor of the job from its start on. Raises UserError without py-spy, Broke if it fails."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise UserError("--profile needs py-spy, which `make setup` installs")
    with tempfile.TemporaryDirectory() as output:
        job = subprocess.Popen([*EXTRACT, str(photos), output], stderr=subprocess.DEVNULL)
        try:
            actor = wait_for_actor(job)
            ended = subprocess.run(
                [spy, "record", "--pid", str(actor), "--output", str(file), "--threads", "--duration", "unlimited"],
                capture_output=True, text=True, check=False,
            )
        finally:
            wait_for(job)
    if not file.exists():
        why = (ended.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise Broke(f"py-spy cannot look into the actor: {why}. It must be allowed to trace processes (ptrace)")
    return file


def wait_for_actor(job: subprocess.Popen[bytes]) -> int:
    """The pid of the job's first actor. Raises Broke if none comes."""
    until = time.monotonic() + START_S
    while job.poll() is None and time.monotonic() < until:
        for process in psutil.Process(job.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(ACTOR):
                    return process.pid
            except (psutil.NoSuchProcess, IndexError):
                continue
        time.sleep(LOOK_S)
    raise Broke("the job started no actor")
