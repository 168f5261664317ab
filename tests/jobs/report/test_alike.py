import numpy as np

from jobs.report import alike
from jobs.report.alike import NOBODY, most_alike


def test_no_face_and_one_face():
    for n in (0, 1):
        found = most_alike(np.ones((n, 4), np.float32), np.arange(n))
        assert found.faces.shape == (n, 0)
    assert found.best(0) is None


def test_faces_of_other_photos_best_first(monkeypatch):
    monkeypatch.setattr(alike, "_BLOCK_COSINES", 8)          # two rows at a time
    vectors = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 2], [-1, 0]], np.float32)
    found = most_alike(vectors, np.array([0, 0, 1, 2, 3]), k=3)
    assert found.faces[0].tolist() == found.faces[1].tolist() == [2, 3, 4]      # not each other: one photo
    assert np.allclose(found.cosines[[0, 3, 4]], [[0.6, 0, -1], [0.8, 0, 0], [0, -0.6, -1]])
    assert found.best(2) == (3, np.float32(0.8))


def test_fewer_faces_than_asked_for_in_other_photos():
    vectors = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    assert most_alike(vectors, np.array([0, 0, 1]), k=2).faces.tolist() == [[2, NOBODY], [2, NOBODY], [0, 1]]
    assert most_alike(vectors, np.zeros(3, np.int64)).best(0) is None
