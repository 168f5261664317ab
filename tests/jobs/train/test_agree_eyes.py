from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa
import pytest

from jobs.train.agree_eyes import consensus_table, votes_argument

NOTHING = float("nan")


def row(pfld_y: float, given_y: float) -> dict[str, object]:
    """A face in a box of 100 px whose eyes lie at y 40, but for PFLD and people; their x agree."""

    def twelve(y: float) -> list[float]:
        return np.repeat([[30.0, y], [70.0, y]], 6, axis=0).ravel().tolist()

    return {
        "source": "wider", "image": f"{pfld_y} {given_y}".encode(), "box": [0.0, 0, 100, 100], "turn": 0.0,
        "given": twelve(given_y), "landmarks": [30.0, 40, 70, 40], "pfld": twelve(pfld_y) * 2, "mesh": twelve(40) * 2,
        "ours": twelve(40) * 2, "five": [30.0, 40, 70, 40, 50, 60, 35, 80, 65, 80] * 2,
    }


def heights(table: pa.Table) -> list[float]:
    """Where the eyes of each face are, in pixels from above."""
    return [round(float(np.mean(points[1::2])), 3) for points in table["points"].to_pylist()]


@pytest.mark.parametrize(("toward_98", "expected"), [(0.0, [40, 40]), (0.5, [39, 39]), (1.0, [38, 38])])
def test_eye_centres_move_toward_the_other_marking(toward_98: float, expected: list[float]) -> None:
    """PFLD has the eyes 2 px higher than people have, on the face that people marked and on the other."""
    table = pa.Table.from_pylist([row(38, 40), row(38, NOTHING)])
    assert heights(consensus_table(table, {"pfld": 1}, toward_98)) == expected


def test_only_votes_count() -> None:
    table = pa.Table.from_pylist([row(40, 40), row(46, NOTHING)])
    assert heights(consensus_table(table)) == [40, 40]                            # the median of all
    assert heights(consensus_table(table, {"pfld": 2, "ours": 1})) == [40, 44]


def test_votes_on_the_command_line() -> None:
    assert votes_argument("pfld=2,five=0.5") == {"pfld": 2.0, "five": 0.5}
    for text, message in (("dlib=1", "no teacher"), ("pfld", "0 or more"), ("five=1", "must have a vote"),
                          ("pfld=0", "must have a vote")):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            votes_argument(text)
