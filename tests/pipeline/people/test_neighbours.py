import numpy as np
import pytest

from pipeline.people import neighbours as module
from pipeline.people.likeness import unit
from pipeline.people.neighbours import Neighbours, nearest


def people(count=40, each=6, dim=32, seed=1):
    """Unit vectors of people: cosines of about 0.8 in one person, and about 0 else."""
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((count, dim)))
    vectors = unit(np.repeat(centres, each, axis=0) + 0.5 * unit(random.standard_normal((count * each, dim))))
    return vectors[random.permutation(len(vectors))]


def expected(vectors, k, floor, of=None):
    """By sorting all cosines."""
    cosines = (vectors if of is None else of) @ vectors.T
    if of is None:
        np.fill_diagonal(cosines, -1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(cosines, order, axis=1)
    return np.where(best > floor, order, -1), best


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 50)
    monkeypatch.setattr(module, "_COLUMNS", 37)
    monkeypatch.setattr(module, "_FIRST_COLUMNS", 11)


@pytest.mark.parametrize("count", [0, 1, 2, 240])
@pytest.mark.parametrize("floor", [-1.0, 0.3])
def test_the_neighbours_are_those_of_all_cosines(count, floor):
    vectors = people()[:count]
    found = nearest(vectors, 7, floor)
    numbers, cosines = expected(vectors, 7, floor)
    assert found.numbers[:, : numbers.shape[1]].tolist() == numbers.tolist()
    assert (found.numbers[:, numbers.shape[1] :] == -1).all()
    there = numbers >= 0
    assert np.allclose(found.cosines[:, : numbers.shape[1]][there], cosines[there], atol=1e-6)


@pytest.mark.parametrize("up_to", [200_000, 0])
def test_neighbours_of_other_vectors_and_progress(monkeypatch, up_to):
    monkeypatch.setattr(module, "EXACT_UP_TO", up_to)
    vectors, of, done = people(), people(seed=1)[::3], []
    found = nearest(vectors, 3, 0.5, of=of, progress=lambda *so_far: done.append(so_far))
    assert (found.numbers == expected(vectors, 3, 0.5, of)[0]).mean() > 0.95
    assert done[-1] == (80, 80)


def test_lists_find_nearly_all_neighbours(monkeypatch):
    vectors = people(count=400).astype(np.float16)
    wanted = nearest(vectors, 5, 0.5).numbers
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)
    monkeypatch.setattr(module, "_PROBED", 20)
    found = nearest(vectors, 5, 0.5).numbers
    both = zip(found.tolist(), wanted.tolist(), strict=True)
    assert np.mean([len({*row} & {*right}) / len({*right}) for row, right in both]) > 0.9
    assert not (found == np.arange(len(found))[:, None]).any()


def test_pairs_come_once_and_sorted():
    cosines = np.array([[0.9, 0.5], [0.5, 0], [0.9, 0]], np.float32)
    near = Neighbours(np.array([[2, 1], [0, -1], [0, -1]], np.int32), cosines)
    first, second, cosines = near.pairs()
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert cosines.tolist() == pytest.approx([0.5, 0.9])
