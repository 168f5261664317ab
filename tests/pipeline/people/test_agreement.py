import numpy as np
import pytest

from pipeline.people.agreement import agreement


@pytest.mark.parametrize(
    ("groups", "people", "bcubed", "pairwise"),
    [
        ([], [], (1, 1), (1, 1)),
        ([5], ["a"], (1, 1), (1, 1)),
        ([0, 1, 2], ["a", "b", "c"], (1, 1), (1, 1)),
        ([0, 0, 1, 1], ["a", "a", "b", "b"], (1, 1), (1, 1)),
        ([0, 0, 0, 0], ["a", "a", "b", "b"], (1 / 2, 1), (2 / 6, 1)),
        ([0, 1, 2, 3], ["a", "a", "b", "b"], (1, 1 / 2), (1, 0)),
        ([0, 0, 0, 1], ["a", "a", "b", "b"], ((2 / 3 + 2 / 3 + 1 / 3 + 1) / 4, 3 / 4), (1 / 3, 1 / 2)),
    ],
)
def test_figures_worked_out_by_hand(groups, people, bcubed, pairwise):
    found = agreement(np.array(groups), np.array(people))
    assert (found.bcubed_precision, found.bcubed_recall) == pytest.approx(bcubed)
    assert (found.pairwise_precision, found.pairwise_recall) == pytest.approx(pairwise)
    assert found.bcubed_f == pytest.approx(2 * bcubed[0] * bcubed[1] / sum(bcubed))
    assert found.words().startswith(f"BCubed F {found.bcubed_f:.4f} (")
