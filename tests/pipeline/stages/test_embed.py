import numpy as np
import pytest

from pipeline.batch import FaceBatch, ImageRecord
from pipeline.geometry import CROP_PX
from pipeline.stages.embed import Embed


def three_four(crops):
    """Vectors (3, 4) · (1 + value of the crop), of length 5, 10, …"""
    return np.array([[3.0, 4.0]] * len(crops), np.float32).reshape(-1, 2) * (1 + crops[:, 0, 0, :1].astype(np.float32))


@pytest.mark.parametrize("values", [[], [0], [0, 1, 2]])
def test_unit_vectors_and_their_lengths(values):
    crops = np.zeros((len(values), CROP_PX, CROP_PX, 3), np.uint8) + np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    crops.flags.writeable = False
    n = len(values)
    batch = FaceBatch((ImageRecord("a"),), np.array([n]), np.zeros((n, 4), np.float32), np.zeros(n, np.float32),
                      crops=crops)
    embedded = Embed(three_four)(batch)
    assert embedded.embeddings.dtype == np.float32 and embedded.embeddings.shape == (n, 2)
    assert np.allclose(embedded.embeddings, np.tile([0.6, 0.8], (n, 1)))
    assert np.allclose(embedded.embedding_norms, [5 * (1 + v) for v in values])


def test_a_zero_vector_stays_zero():
    batch = FaceBatch((ImageRecord("a"),), np.array([1]), np.zeros((1, 4), np.float32), np.zeros(1, np.float32),
                      crops=np.zeros((1, CROP_PX, CROP_PX, 3), np.uint8))
    embedded = Embed(lambda crops: np.zeros((len(crops), 2), np.float32))(batch)
    assert embedded.embeddings.tolist() == [[0.0, 0.0]] and embedded.embedding_norms.tolist() == [0.0]
