"""Training in several processes: one run of a small eye network on Ray, and errors without Ray."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.train import on_ray as train_on_ray
from jobs.train.eyes import build_parser, main
from pipeline.run.cluster import Connection

ROOT = Path(__file__).parents[3]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data/eyes").mkdir(parents=True)
    angle = np.linspace(0, 2 * np.pi, 68)
    points = np.stack([80 + 30 * np.cos(angle), 80 + 30 * np.sin(angle)], 1)
    images = [cv2.imencode(".png", np.full((160, 160, 3), value, np.uint8))[1].tobytes() for value in (20, 90, 160)]
    for part in ("train", "val"):
        pq.write_table(pa.table({"image": images, "points": [points.tolist()] * 3}),
                       tmp_path / f"data/eyes/{part}.parquet")
    return tmp_path / "data"


def arguments(data: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--name", "tiny", "--width", "16", "--input-px", "64", "--steps", "8",
            "--batch-size", "2", "--device", "cpu", "--checkpoints", str(data.parent / "checkpoints"),
            "--weights", str(data.parent / "weights"), *more]


def test_two_processes_share_the_batches_and_one_writes(data: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    run = subprocess.run(
        [sys.executable, "-m", "jobs.train", "eyes", *arguments(data, "--workers", "2")], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False, timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("step 4: ") == 1
    with (data.parent / "checkpoints/keypointer-tiny/log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]      # 8 batches, two at a time
    assert json.loads((data.parent / "weights/keypointer-tiny.json").read_text())["role"] == "keypointer"


def test_a_worker_returns_the_message_of_a_data_error(data: Path) -> None:
    (data / "eyes/val.parquet").unlink()
    config = {"model": "eyes", "args": build_parser().parse_args(arguments(data)), "threads": 1}
    assert train_on_ray.train_worker(config).endswith("eyes/val.parquet does not exist")


@pytest.mark.parametrize(
    ("cpus", "nodes", "workers", "each"),
    [(2, 1, 1, 2), (2, 1, 2, 1), (8, 1, 3, 2), (12, 3, 2, 4), (12, 3, 4, 2), (1, 1, 4, 1)],
)
def test_cpus_of_a_worker(cpus: float, nodes: int, workers: int, each: int) -> None:
    assert train_on_ray.cpus_of_worker(cpus, nodes, workers) == each


@pytest.mark.parametrize(
    ("there", "workers", "error"),
    [
        (Connection(4.0, 0.0, 1), "5", "--workers 5, but Ray has 4 free CPUs"),
        (Connection(4.0, 0.0, 2), "2", "the cluster has 2 nodes, and these are local paths: --data "),
    ],
)
def test_a_cluster_that_does_not_fit_is_an_error(
    there: Connection, workers: str, error: str, data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def connect(*, worker_output: bool) -> Iterator[Connection]:
        yield there

    monkeypatch.setattr(train_on_ray, "connect", connect)
    assert main(arguments(data, "--workers", workers)) == 2
    assert f"train eyes: {error}" in capsys.readouterr().err
