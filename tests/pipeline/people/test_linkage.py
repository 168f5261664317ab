import numpy as np
import pytest

from pipeline.people.likeness import LikenessError, unit
from pipeline.people.linkage import Apart, Groups, LinkThreshold, link
from pipeline.people.neighbours import nearest

NOBODY = -1


def at(*degrees):
    """Unit vectors at these angles in a plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def linked(vectors, threshold, photos=None, names=None):
    """The groups as sets of members, sorted."""
    groups = Groups.single(vectors.copy())
    known = [np.full(len(vectors), NOBODY) if values is None else np.array(values) for values in (photos, names)]
    merged = link(groups, nearest(vectors, 16, -1).pairs(), threshold, Apart(*known))
    found = sorted(np.flatnonzero(groups.of == group).tolist() for group in groups.alive())
    assert merged == len(vectors) - len(found)
    for group in groups.alive():
        members = vectors[groups.of == group]
        assert groups.sizes[group] == len(members)
        assert np.allclose(groups.means[group], members.mean(axis=0), atol=1e-5)
    return found


@pytest.mark.parametrize(
    ("degrees", "groups"),
    [
        ([], []),
        ([0], [[0]]),
        ([0, 90], [[0], [1]]),
        ([0, 10], [[0, 1]]),
        ([0, 20, 40, 200], [[0, 1, 2], [3]]),
        ([0, 25, 50, 75], [[0, 1], [2, 3]]),     # 25 to 50 is 0.91, the mean of all four 0.66
    ],
)
def test_groups_at_a_fixed_threshold(degrees, groups):
    assert linked(at(*degrees), LinkThreshold(0.75, 0.75)) == groups


def test_it_gives_the_groups_of_scipys_average_linkage():
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    random = np.random.default_rng(3)
    vectors = unit(np.repeat(random.standard_normal((30, 16)), 5, axis=0) + random.standard_normal((150, 16)))
    groups = Groups.single(vectors.copy())
    link(groups, nearest(vectors, 149, -1).pairs(), LinkThreshold(0.4, 0.4), None)
    right = fcluster(linkage(pdist(vectors, "cosine"), "average"), 0.6, "distance")
    ours = np.unique(groups.of, return_inverse=True)[1]
    both = set(zip(ours.tolist(), right.tolist(), strict=True))
    assert len(both) == len(set(ours.tolist())) == len(set(right.tolist())) < 100


def test_larger_groups_need_less():
    threshold = LinkThreshold(0.45, 0.29)
    sizes = threshold(np.array([1, 1, 2, 100]), np.array([1, 10, 2, 100]))
    assert sizes[0] == pytest.approx(0.45) and sizes[3] == pytest.approx(0.29, abs=0.01)
    assert (np.diff(sizes[[0, 2, 1, 3]]) < 0).all()
    assert LinkThreshold.of_pair(0.45).large == pytest.approx(0.45 / 1.58)
    assert LinkThreshold.of_embedder({"0.001": 0.283, "0.01": 0.2}, "e").pair == pytest.approx(0.447, abs=0.001)
    with pytest.raises(LikenessError, match="has no threshold"):
        LinkThreshold.of_embedder({}, "e")


@pytest.mark.parametrize(
    ("photos", "names", "groups"),
    [
        ([7, 7, NOBODY], None, [[0, 2], [1]]),                    # 2 is nearer to 0
        ([7, 8, NOBODY], None, [[0, 1, 2]]),
        ([7, NOBODY, 7], None, [[0], [1, 2]]),
        (None, [0, 1, NOBODY], [[0, 2], [1]]),
        (None, [0, 0, NOBODY], [[0, 1, 2]]),
        ([7, 7, 7], None, [[0], [1], [2]]),
    ],
)
def test_who_is_kept_apart(photos, names, groups):
    assert linked(at(0, 12, 5), LinkThreshold(0.9, 0.9), photos, names) == groups


def test_members_stay_apart_when_their_groups_meet():
    # 0 and 3 are on one photo. Each finds a partner first; then the two groups may not meet.
    assert linked(at(0, 1, 10, 11), LinkThreshold(0.9, 0.9), photos=[7, NOBODY, NOBODY, 7]) == [[0, 1], [2, 3]]
