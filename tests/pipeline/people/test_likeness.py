import numpy as np
import pytest

from pipeline.people.likeness import LikenessError, Threshold, cosines, threshold_at


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 0))),
        ([[1, 0]], [[1, 0], [0, 1], [-1, 0]], [[1, 0, -1]]),
        ([[3, 4]], [[30, 40], [4, 3]], [[1, 0.96]]),
        ([[0, 0]], [[1, 0], [0, 0]], [[0, 0]]),
    ],
)
def test_cosines(first, second, expected):
    found = cosines(np.array(first, np.float32), np.array(second, np.float32))
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-6)


def test_float16_does_not_overflow_and_no_cosine_exceeds_1():
    large = np.full((1, 512), 300, np.float16)
    assert cosines(large, large)[0, 0] == pytest.approx(1, abs=1e-6)
    vectors = np.random.default_rng(0).normal(size=(200, 512)).astype(np.float32)
    assert cosines(vectors, vectors).max() <= 1


CALIBRATED = {"0.2": 0.1, "0.001": 0.3}


@pytest.mark.parametrize(
    ("thresholds", "fpr", "found"),
    [
        ({}, 0.001, "has no threshold"),
        (CALIBRATED, 0.001, Threshold(0.3, 0.001)),
        (CALIBRATED, 2e-1, Threshold(0.1, 0.2)),
        (CALIBRATED, 0.01, r"--fpr 0\.01: the embedder e has thresholds for 0\.001, 0\.2 only"),
        (CALIBRATED, 1e-6, r"--fpr 1e-06"),
    ],
)
def test_only_rates_that_were_measured_have_a_threshold(thresholds, fpr, found):
    if isinstance(found, Threshold):
        assert threshold_at(thresholds, fpr, "e") == found
    else:
        with pytest.raises(LikenessError, match=found):
            threshold_at(thresholds, fpr, "e")
