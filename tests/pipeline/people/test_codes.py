"""The bounds of the codes hold: what a scan leaves out is less alike than it says."""

import numpy as np
import pytest

from pipeline.people.codes import Codes
from pipeline.people.likeness import unit

RANDOM = unit(np.random.default_rng(1).standard_normal((300, 32), np.float32))
ODD = np.concatenate([np.eye(32, dtype=np.float32), -np.eye(32, dtype=np.float32), np.zeros((3, 32), np.float32)])


def read_back(codes):
    """The codes as they are read from files."""
    planes = {name: np.frombuffer(content, np.uint8) for name, content in codes.to_bytes().items()}
    return Codes.read(planes, codes.scale, codes.high_error, codes.low_error)


@pytest.mark.parametrize("vectors", [
    RANDOM[:1], np.zeros((2, 32), np.float32), ODD, RANDOM, np.concatenate([RANDOM, ODD, RANDOM[:9]]),
])  # fmt: skip
def test_products_and_what_is_left_out_are_within_their_bounds(vectors):
    codes = read_back(Codes.of(vectors))
    assert len(codes) == len(vectors)
    for probe in (RANDOM[7], ODD[0], ODD[40], ODD[-1], -RANDOM[0]):
        exact = vectors @ probe
        every = np.arange(len(vectors))
        assert np.abs(codes.products(probe, every) - exact).max() <= codes.error
        for count in {1, len(vectors) // 2 or 1, len(vectors)}:
            rows, least, off = codes.scan(probe[None], count)
            left_out = np.setdiff1d(every, rows[0])
            assert len(rows[0]) == count and exact[left_out].max(initial=-2) <= least[0] + off[0]


def test_the_low_plane_makes_them_two_hundred_times_as_fine():
    codes = Codes.of(RANDOM)
    assert 150 < codes.high_error / codes.low_error < 400
    assert np.abs(codes.vectors(np.arange(300)) - RANDOM).max() < codes.scale
