"""The committed notebooks, and the script that runs them. `make notebooks` runs the three themselves."""

import ast
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from jobs.evaluate.data import decode_column, point_column, read_table
from jobs.train.drawn_faces import write_drawn_data
from jobs.train.eyes import read_points
from pipeline.run.cluster import REPOSITORY

FILES = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000
TRAININGS = ("eye_points", "train_embedder")


def read(file):
    return nbformat.read(file, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_three():
    assert [file.stem for file in FILES] == ["eye_points", "full_pipeline", "train_embedder"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_outputs_are_of_one_run_without_errors_times_and_places(file):
    notebook, text = read(file), file.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert all(not cell.metadata for cell in notebook.cells)
    without_pictures = re.sub(r'"image/png": "[^"]+"', "", text)
    assert not re.search(r"/(tmp|work|home|root|Users|usr)/|\d images/s|\d{4}-\d\d-\d\d", without_pictures)
    assert len(text.encode()) < MAX_BYTES


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_say_what_the_figures_are_of(name):
    notebook = read(REPOSITORY / f"notebooks/{name}.ipynb")
    said = " ".join(str(output) for output in outputs(notebook))
    assert "faces of DATA" in said and "drawn" not in said      # the committed ones are of photos


def test_the_reference_is_of_other_data():
    said = " ".join(str(output) for output in outputs(read(REPOSITORY / "notebooks/train_embedder.ipynb")))
    assert "reference, **other data**" in said and all(rate in said for rate in ("0.465", "0.588", "0.725"))


def test_no_code_is_defined_that_is_not_used():
    """Notebooks call the project; they define little of their own."""
    for file in FILES:
        code = "\n".join(cell.source for cell in read(file).cells if cell.cell_type == "code")
        defined = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert len(defined) <= 4 and "from jobs." in code


@pytest.mark.parametrize(
    ("options", "source", "code", "kept"),
    [([], "1 + 1", 0, True), (["--refresh"], "1 + 1", 0, False), ([], "1 / 0", 1, True)],
    ids=["run", "refresh", "an error"],
)
def test_only_refresh_writes_and_an_error_ends_the_run(tmp_path, options, source, code, kept):
    file, home = tmp_path / "a.ipynb", tmp_path / "home"
    home.mkdir()
    cells = [nbformat.v4.new_code_cell(f"import jobs.demo\n{source}", id="a")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    before = file.read_bytes()
    command = [sys.executable, str(REPOSITORY / "notebooks/run.py"), *options, str(file)]
    ended = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert (file.read_bytes() == before) is kept and not list(home.iterdir())
    assert ("ZeroDivisionError" in ended.stderr) is bool(code)
    if not kept:
        (cell,) = read(file).cells
        assert cell.outputs[0].data["text/plain"] == "2" and not cell.metadata
        assert b"execution" not in file.read_bytes().replace(b"execution_count", b"")


def test_drawn_data_is_the_same_for_a_seed_and_can_be_read(tmp_path):
    for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_drawn_data(tmp_path / folder, people=5, images=2, seed=seed)
    a, b, c = ({file.relative_to(tmp_path / name).as_posix(): file.read_bytes() for file in
                (tmp_path / name).rglob("*.parquet")} for name in "abc")
    assert a == b != c
    assert sorted(a) == ["eyes/train.parquet", "eyes/val.parquet", "identities/train-0.parquet",
                         "identities/val.parquet"]
    train, val = (read_table(tmp_path / f"a/identities/{name}.parquet", ["identity", "image", "landmarks"])
                  for name in ("train-0", "val"))
    assert not {*train["identity"].to_pylist()} & {*val["identity"].to_pylist()}
    assert len(train) == 8 and decode_column(train, tmp_path)[0].shape == (144, 144, 3)
    five = point_column(train, "landmarks", 5, tmp_path)
    assert ((five > 20) & (five < 124)).all() and (five[:, 0, 0] < five[:, 1, 0]).all()
    assert (five[:, 0, 1] < five[:, 3, 1]).all()                # eyes above the mouth
    assert len(read_points(tmp_path / "a/eyes/train.parquet")[0]) == 8


def test_the_points_of_drawn_faces_lie_on_the_drawing(tmp_path):
    """The whites of the eyes, around their middles, are brighter than the skin of these dark faces."""
    write_drawn_data(tmp_path, people=5, images=4, seed=3)
    images, points = read_points(tmp_path / "eyes/train.parquet")
    for image, face in zip(images, points, strict=True):
        for eye in (face[36:42], face[42:48]):
            x, y = eye.mean(0)
            pupil = image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean()
            chin = image[int(face[8, 1]) - 6, int(face[8, 0])].mean()
            assert pupil < 0.9 * chin, (pupil, chin)
    assert np.isfinite(points).all()
