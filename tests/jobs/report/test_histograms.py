import numpy as np
import pytest

from jobs.report.histograms import SCALES, Histogram, Histograms, Scale


def counted(values, scale):
    histogram = Histogram(scale)
    histogram.add(np.array(values, np.float64))
    return histogram


@pytest.mark.parametrize(
    ("values", "bars", "unknown"),
    [
        ([], [], 0),
        ([np.nan], [], 1),
        ([2.0], [("2 to 4 px", 1, 1.0)], 0),
        ([1, 1, 1.5, 5, -7, 99, np.nan], [("1 to 2 px", 4, 1.0), ("2 to 4 px", 0, 0.0), ("4 to 8 px", 2, 0.5)], 1),
    ],
)
def test_bins_from_the_first_to_the_last_that_has_any(values, bars, unknown):
    found = counted(values, Scale("Size", [1, 2, 4, 8], " px"))
    assert [(bar.name, bar.count, bar.height) for bar in found.bars] == bars
    assert found.unknown == unknown


def test_whole_numbers_have_names_of_whole_numbers():
    found = counted([0, 1, 6, 7, 5000], SCALES["faces"])
    assert [bar.name for bar in found.bars if bar.count] == ["0", "1", "6 to 7", "1,001 to 3,000"]


def test_a_sentence_for_who_cannot_see_the_bars():
    assert counted([], SCALES["roll_deg"]).summary == "no values"
    summary = counted([-20, 1, 2], SCALES["roll_deg"]).summary
    assert summary == "from −30 to −15° to 0 to 15°; the most, 2 of 3: 0 to 15°"


def test_parts_add_up():
    found = Histograms()
    assert list(found.filled()) == []
    for score in (0.4, 0.9):
        found.add({"det_score": np.array([score], np.float32)})
    assert [histogram.total for histogram in found.filled()] == [2]
