import numpy as np
import pytest

from jobs.evaluate.people import grouped, rounded
from pipeline.people.linkage import LinkThreshold

A, B = np.eye(2)


@pytest.mark.parametrize(
    ("vectors", "people", "figures"),
    [
        ([A, A, B, B], [0, 0, 1, 1], [1, 1, 1, 1, 1, 1]),
        ([A, A, B, [np.nan, np.nan]], [0, 0, 1, 1], [0.85714, 1, 0.75, 0.66667, 1, 0.5]),     # no face: alone
    ],
)
def test_figures_of_groups(vectors, people, figures):
    found = rounded(grouped(np.array(vectors), np.array(people), LinkThreshold(0.4, 0.3)))
    assert list(found.values()) == pytest.approx(figures)
