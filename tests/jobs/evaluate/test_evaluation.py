from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.evaluate.data import DataError
from jobs.evaluate.evaluation import Evaluation, Plot
from models.store import read_card
from tests.support.evaluation import tiny_weights

LINE = (np.array([0.001, 1.0]), np.array([0.0, 1.0]))
PLOT = Plot("x (%)", "y", {"line": LINE}, (0, 1))
EVALUATION = Evaluation("Title", {"a": 1}, ("x", "y"), [("1", "2"), ("3", "4")], PLOT)


def test_an_evaluation_is_a_table_json_and_a_picture(tmp_path: Path) -> None:
    EVALUATION.write(tmp_path / "new", "name")
    assert (tmp_path / "new/name.md").read_text() == (
        "## Title\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )
    assert json.loads((tmp_path / "new/name.json").read_text()) == {"a": 1}
    assert (tmp_path / "new/name.png").stat().st_size < 100_000
    replace(EVALUATION, more_plots={"other": PLOT}).write(tmp_path / "two", "name")
    assert sorted(path.name for path in (tmp_path / "two").glob("*.png")) == ["name-other.png", "name.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to --out .*file: File exists; give another folder"):
        EVALUATION.write(tmp_path / "file", "name")
    with pytest.raises(DataError, match=r"--update-card: cannot write to .*file: Not a directory"):
        card = read_card(tiny_weights(tmp_path / "weights"), "embedder", "tiny")
        EVALUATION.record(tmp_path / "file", card, "name", "the command")


def curve_width(path: Path) -> int:
    """The length in pixels of the first curve, which is blue and horizontal."""
    blue = np.abs(cv2.imread(str(path)).astype(int) - (180, 119, 31)).max(axis=2) < 20
    return int(blue.sum(axis=1).max())


def test_a_logarithmic_axis_shows_small_rates(tmp_path: Path) -> None:
    step = (np.array([0.001, 0.1]), np.array([0.5, 0.5]))
    for log_x in (False, True):
        Plot("x", "y", {"step": step}, (0.001, 1), log_x).write(tmp_path / f"{log_x}.png", "Title")
    # from 0.001 to 1 this is two thirds of a logarithmic axis and a tenth of a linear one, of about 600 pixels
    assert curve_width(tmp_path / "True.png") > 300
    assert 10 < curve_width(tmp_path / "False.png") < 100
    assert cv2.imread(str(tmp_path / "True.png")).shape == (500, 700, 3)


def test_figures_go_into_the_card(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "weights")
    for thresholds, expected in ((None, {}), ({"0.1": 0.25}, {"0.1": 0.25}), (None, {"0.1": 0.25})):
        EVALUATION.record(weights, read_card(weights, "embedder", "tiny"), "name", "the command", thresholds)
        card = read_card(weights, "embedder", "tiny")
        assert card.metrics == {"a": 1, "name": {"a": 1, "command": "the command"}}
        assert card.thresholds == expected
