"""The whole job on a CUDA device gives the rows that it gives on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.settings import RowSettings
from tests.gpu.limited_job import GPU_BYTES
from tests.support.agreement import assert_outputs_agree
from tests.support.photos import photos_in_sizes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SIZES_PX = (1280, 1024, 768, 640, 512, 400)


def extract(*arguments: object, module: str = "jobs.extract") -> str:
    """Run the job; returns what it printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, content in photos_in_sizes(SIZES_PX).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def on_cpu(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on the CPU."""
    output = tmp_path_factory.mktemp("cpu")
    extract(photos, output, "--device", "cpu")
    assert pq.read_table(output / "faces").num_rows >= 4 * len(SIZES_PX)
    return output


@pytest.mark.parametrize("layout", ["decode+detect+keypoint+align+embed", "decode/detect/keypoint/align/embed"])
def test_rows_agree_with_those_of_the_cpu(photos: Path, on_cpu: Path, tmp_path: Path, layout: str) -> None:
    printed = extract(photos, tmp_path, "--device", "cuda", "--pools", layout)
    assert " GPU, " in printed
    assert_outputs_agree(tmp_path, on_cpu)


def test_two_actors_share_a_gpu(photos: Path, on_cpu: Path, tmp_path: Path) -> None:
    printed = extract(photos, tmp_path, "--device", "cuda", "--gpus", 1, "--pools",
                      "decode+detect+keypoint+align+embed:2", "--rows-per-file", 2)
    assert "2 × (1 CPU + 0.5 GPU, " in printed
    assert_outputs_agree(tmp_path, on_cpu)


def test_batches_that_do_not_fit_the_gpu_change_no_row(photos: Path, on_cpu: Path, tmp_path: Path) -> None:
    """The actors get too little memory for the input of the detector alone."""
    batch = 256
    assert batch * 3 * RowSettings().detect_px ** 2 * 4 > GPU_BYTES
    extract(photos, tmp_path, "--device", "cuda", "--detect-batch", batch, "--face-batch", 64,
            module="tests.gpu.limited_job")
    assert_outputs_agree(tmp_path, on_cpu)
