from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.wild import errors_by_spread, groups_of, spread_plot, wild_errors
from models.eye_layout import WFLW_EYES
from models.store import read_card
from tests.support.evaluation import encoded, tiny_weights, zidane


def points12(left: tuple[float, float], right: tuple[float, float]) -> np.ndarray:
    """Eye points whose outer corners are 2 px beyond the centres, which lie in the middle."""
    around = np.array([[-2.0, 0], [-1, -1], [1, -1], [2, 0], [1, 1], [-1, 1]])
    return np.concatenate([around + left, around + right])


def test_errors_of_centres_and_rolls() -> None:
    wanted = np.stack([points12((10, 10), (26, 10))] * 3)             # outer corners 8 and 28: 20 px apart
    found = np.stack([
        points12((10, 10), (26, 10)),
        points12((10, 12), (26, 12)),                                 # 2 px too low: 10%
        np.full((12, 2), np.nan),
    ])
    errors = wild_errors(found, wanted)
    assert errors.centres.tolist() == [0.0, pytest.approx(0.1), np.inf]
    assert errors.roll_deg[:2].tolist() == [0.0, 0.0] and np.isnan(errors.roll_deg[2])
    figures = errors.figures(np.ones(3, bool))
    assert figures == {"faces": 3, "found": 2, "median": 0.1, "above_10": pytest.approx(1 / 3, abs=1e-5),
                       "roll_p90_deg": 0.0}


def test_rolls_are_compared_around_the_circle() -> None:
    upside_down = points12((26, 10), (10, 10))                        # 180°, and a little less and more than that
    wanted, found = upside_down[None].copy(), upside_down[None].copy()
    wanted[:, 6:, 1] += 1
    found[:, 6:, 1] -= 1
    assert wild_errors(found, wanted).roll_deg[0] == pytest.approx(2 * np.degrees(np.arctan(1 / 16)))


def test_leaving_out_the_unsure() -> None:
    errors = np.array([0.02, 0.3, 0.04, np.inf])
    assert errors_by_spread(errors, np.array([0.1, 0.9, 0.2, np.nan]), [1 / 3]) == {
        "0%": {"median": 0.04, "above_10": pytest.approx(1 / 3, abs=1e-5)},
        "33%": {"median": pytest.approx(0.03), "above_10": 0.0},
    }
    assert errors_by_spread(errors, np.full(4, np.nan)) == {}


def test_the_curve_of_faces_kept() -> None:
    errors = np.array([0.3, 0.02, np.inf, 0.04, 0.06])
    curves = spread_plot(errors, np.array([0.9, 0.1, np.nan, 0.2, 0.3])).curves.values()
    # Two, three and all of the four that are found; that with the largest spread is off by 30%.
    assert [[(x, round(y, 3)) for x, y in zip(*curve, strict=True)] for curve in curves] == [
        [(50.0, 0.0), (75.0, 0.0), (100.0, 25.0)], [(50.0, 3.0), (75.0, 4.0), (100.0, 5.0)],
    ]


def test_groups() -> None:
    groups = groups_of(pa.table({"kinds": [["blur"], [], None], "turned": [False, True, False]}))
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "all": [True] * 3, "turned": [False, True, False], "blur": [True, False, False],
    }


def test_eyes_in_the_wild_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny_weights(tmp_path / "weights")
    all98 = np.full((98, 2), 160.0)
    all98[:2] = (80, 80), (240, 240)                                  # the extent of the face
    all98[WFLW_EYES] = points12((120, 130), (200, 130))
    table = pa.table({
        "image": [encoded(zidane()[20:340, 822:1142]), encoded(np.zeros((320, 320, 3), np.uint8))],
        "points98": [all98.ravel().tolist()] * 2, "kinds": [["occlusion"], []], "turned": [False, True],
    })
    pq.write_table(table, tmp_path / "wild.parquet")
    assert main([
        "eyes", str(tmp_path / "wild.parquet"), "--weights", str(weights), "--keypointer", "tiny", "--device", "cpu",
        "--update-card", "--out", str(tmp_path / "out"),
    ]) == 0
    figures = json.loads((tmp_path / "out/eyes.json").read_text())
    assert figures["all"]["faces"] == 2 and figures["all"]["found"] == 1
    assert figures["turned"]["above_10"] == 1.0                       # the face that is not there
    assert "| occlusion | 1 | 1 |" in capsys.readouterr().out
    assert read_card(weights, "keypointer", "tiny").metrics["eyes_wild"]["all"]["found"] == 1
    by_detector = ["--weights", str(weights), "--by", "detector", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["eyes", str(tmp_path / "wild.parquet"), *by_detector]) == 0
    assert json.loads((tmp_path / "out/eyes.json").read_text())["all"]["found"] == 1
    both = ["--keypointer", "tiny", "--by", "both", "--update-card"]
    assert main(["eyes", str(tmp_path / "wild.parquet"), *by_detector, *both]) == 0
    assert "boxes and points of yolov8n" in capsys.readouterr().out
    assert read_card(weights, "keypointer", "tiny").metrics["eyes_wild_by_both"]["all"]["found"] == 1
