import json

import cv2
import pytest

from jobs.bench import table
from jobs.bench.limit import LEAST
from jobs.bench.loop import NAME as LOOP
from jobs.bench.measurement import Measurement
from jobs.bench.table import Results


def results(*rounds, photos="photos"):
    made = Results(photos)
    for number, rows in enumerate(rounds):
        made.add(number, [Measurement(*row) for row in rows])
    return made


THREE = results(
    [("job: one pool", 8.0, "images/s", {"in all, s": 30.0}), (LOOP, 2.0), (LEAST, 10.0), ("start: two", 9.0, "s")],
    [(LOOP, 4.0), (LEAST, 20.0), ("job: one pool", 12.0, "images/s", {"in all, s": 20.0}), ("limit: decode", 500.0)],
    [(LEAST, 10.0), ("job: one pool", 5.0, "images/s", {"in all, s": 28.0}), (LOOP, 1.0)],
)


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (results(), []),
        (results([("peer: p", 0.5)]), ["| peer: p | 0.5 images/s | 0.5 to 0.5 |  |  |  |"]),
        (THREE, [
            f"| {LEAST} | 10 images/s | 10 to 20 | 5.00 | 1.00 |  |",
            "| limit: decode | 500 images/s | 500 to 500 |  |  |  |",
            # by round: 8/2, 12/4, 5/1 of the loop; 0.8, 0.6, 0.5 of the limit
            "| job: one pool | 8 images/s | 5 to 12 | 4.00 | 0.60 | in all, s: 28 |",
            f"| {LOOP} | 2 images/s | 1 to 4 | 1.00 | 0.20 |  |",
            "| start: two | 9 s | 9 to 9 |  |  |  |",
        ]),
    ],
    ids=["none", "one", "three rounds"],
)
def test_rows_have_medians_and_the_ratios_are_taken_within_a_round(given, lines):
    assert table.markdown(given).splitlines()[2:] == lines


def test_what_is_left_out_has_a_line():
    given = results([(LOOP, 1.0)])
    given.left_out["peer: p"] = "no weights"
    assert table.markdown(given).endswith("\nLeft out: peer: p: no weights.")


def test_json_has_every_round_and_the_medians():
    content = json.loads(table.as_json({"CPU": "x"}, [THREE]))
    [folder] = content["folders"]
    assert content["machine"] == {"CPU": "x"} and folder["median"]["job: one pool"] == 8
    assert [len(measured) for measured in folder["rounds"]] == [4, 4, 3]


@pytest.mark.parametrize("folders", [[results()], [THREE], [THREE, results([(LOOP, 1.0)], photos="others")]])
def test_the_chart_is_a_picture(tmp_path, folders):
    table.draw(folders, tmp_path / "bench.png")
    assert cv2.imread(str(tmp_path / "bench.png")).shape[1] == 1080


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1,234")])
def test_numbers_have_three_digits(value, text):
    assert table.number(value) == text
