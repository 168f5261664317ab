import numpy as np
import pytest

from pipeline.people import neighbours as module
from pipeline.people.likeness import unit
from pipeline.people.neighbours import Neighbours, nearest, renewed


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


@pytest.mark.parametrize("k", [3, 20])              # each vector has five of its person: more than 3, fewer than 20
@pytest.mark.parametrize(("gone", "new"), [(0, 0), (0, 9), (9, 0), (60, 40), (240, 7)])
def test_renewed_neighbours_are_those_of_all_cosines(k, gone, new):
    vectors, random = people(), np.random.default_rng(2)
    stays = np.sort(random.permutation(240)[gone:])
    now = np.concatenate([vectors[stays], people(seed=1)[:new] + 0.05 * random.standard_normal((new, 32))])
    order = random.permutation(len(now))
    now, same = unit(now[order]), np.append(stays, np.full(new, -1))[order]
    done = []
    found = renewed(nearest(vectors, k, 0.5), now, same, 0.5, lambda *so_far: done.append(so_far))
    wanted = nearest(now, k, 0.5)
    assert found.numbers.tolist() == wanted.numbers.tolist()
    assert np.allclose(found.cosines, wanted.cosines, atol=1e-6)
    assert done[-1] == (len(now), len(now)) and done == sorted(done)


def test_only_few_are_compared_again(monkeypatch):
    vectors, compared = people(), []
    before, add = nearest(vectors, 20, 0.5), Neighbours.add
    monkeypatch.setattr(Neighbours, "add", lambda self, cosines, numbers: (
        compared.append(cosines.size), add(self, cosines, numbers)))
    vectors[:4] = people(seed=3)[:4]
    renewed(before, vectors, np.where(np.arange(240) < 4, -1, np.arange(240)), 0.5)
    assert sum(compared) == 4 * 240 + 236 * 4


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
