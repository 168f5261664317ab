import json
import math
import sys

import cv2
import numpy as np
import pytest

from jobs.bench import sweep
from jobs.bench.stub_job import StubDecode, stub_builders, stub_faces
from jobs.bench.sweep import ON_CORES, Sweep, bench_sweeps, by_megapixels, crowd, table_lines
from pipeline.batch import TodoRow
from pipeline.boundary import STAGES, faces_to_table
from tests.support.photos import ASSETS


@pytest.mark.parametrize("count", [0, 1, 65])
def test_the_stub_stages_give_a_finished_face_for_every_row(count):
    rows = [TodoRow(f"/{i}.jpg") for i in range(count)]
    batches = [stub_faces(images) for images in StubDecode()(rows)]
    assert [record.uri for batch in batches for record in batch.records] == [row.uri for row in rows]
    assert all(len(faces_to_table(batch, "embed")) == len(batch) for batch in batches)
    assert tuple(sorted(stub_builders(None))) == tuple(sorted(STAGES))


def test_a_table_has_a_line_for_every_value_and_json_too(capsys, monkeypatch, tmp_path):
    def measure(value, photos, device):
        return {"ms": value / 4 if value else math.nan}

    monkeypatch.setattr(sweep, "SWEEPS", {"faces": Sweep((0, 1, 200), measure)})
    bench_sweeps(["faces"], tmp_path, "cpu", tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == [
        "| faces | ms |", "|---|---|", "| 0 | nan |", "| 1 | 0.25 |", "| 200 | 50 |",
    ]
    assert json.loads((tmp_path / "out" / "sweeps.json").read_text())["faces"][1] == {"faces": 1, "ms": 0.25}


def test_rows_need_not_be_many():
    assert list(table_lines([{"cores": 1, "images/s": 2.5}])) == ["| cores | images/s |", "|---|---|", "| 1 | 2.5 |"]


@pytest.mark.parametrize("faces", [0, 1, 200])
def test_a_crowd_repeats_a_face(faces):
    picture = crowd(faces, ASSETS)
    changed = np.any(picture != 114, axis=2)
    tiles = changed.reshape(20, 64, 30, 64).any(axis=(1, 3))
    assert picture.shape == (1280, 1920, 3) and (tiles.sum() > 0) == (faces > 0)
    if faces == 200:
        assert cv2.connectedComponents(cv2.erode(changed.astype(np.uint8), np.ones((3, 3))))[0] - 1 >= 200


def test_stages_are_timed_on_photos_of_a_size(tmp_path):
    row = by_megapixels(0.1, tmp_path, "cpu")
    assert row["faces found"] == 0 and row["detect, ms"] > 0
    assert row["all, ms"] == pytest.approx(sum(row[f"{name}, ms"] for name in STAGES))


def test_a_process_gets_so_many_cores():
    import subprocess

    shown = "import os; print(len(os.sched_getaffinity(0)))"
    assert subprocess.check_output([sys.executable, "-c", ON_CORES, "1", "-c", shown]) == b"1\n"
