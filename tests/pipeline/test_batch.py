import numpy as np
import pytest

from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord

A, B, C = ImageRecord("a"), ImageRecord("b"), ImageRecord("c")


def faces(records, counts, **values):
    n = sum(counts)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    return FaceBatch(records, np.array(counts, np.int64), boxes, np.arange(n, dtype=np.float32), **values)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="2 images, one per record, got 1"):
        ImageBatch((A, B), (NO_PIXELS,))
    with pytest.raises(ValueError, match=r"face_counts must be \(1,\)"):
        FaceBatch((A,), np.array([0, 0]), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    with pytest.raises(ValueError, match=r"boxes_xyxy must be \(2, 4\)"):
        FaceBatch((A,), np.array([2]), np.zeros((1, 4), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="roll_deg must have 2 entries"):
        faces((A,), [2], roll_deg=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"eye_points must be \(2, 12, 2\)"):
        faces((A,), [2]).with_eyes(np.zeros((2, 6, 2), np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("records", "counts", "cut"), [((A, B), [0, 0], 1), ((A, B), [2, 1], 1), ((A, B, C), [2, 0, 1], 1)]
)
def test_concatenating_halves_gives_the_same_batch(records, counts, cut):
    n = sum(counts)
    batch = faces(records, counts, embeddings=np.arange(n * 3, dtype=np.float32).reshape(n, 3),
                  chips=tuple(np.full((i + 1, i + 1, 3), i, np.uint8) for i in range(n)))
    halves = batch.halves()
    assert [half.records for half in halves] == [records[:cut], records[cut:]]
    assert [len(half) for half in halves] == [sum(counts[:cut]), sum(counts[cut:])]
    joined = FaceBatch.concatenate(halves)
    assert joined.records == records and joined.face_counts.tolist() == counts
    assert np.array_equal(joined.boxes_xyxy, batch.boxes_xyxy)
    assert np.array_equal(joined.embeddings, batch.embeddings)
    assert [chip.shape for chip in joined.chips] == [chip.shape for chip in batch.chips]


@pytest.mark.parametrize("records", [(A, B), (A, B, C)])
def test_halves_of_images(records):
    pixels = tuple(np.full((1, 1, 3), i, np.uint8) for i in range(len(records)))
    halves = ImageBatch(records, pixels).halves()
    assert [half.records for half in halves] == [records[:1], records[1:]]
    assert [int(each[0, 0, 0]) for half in halves for each in half.pixels] == list(range(len(records)))


def test_chips_and_crops_are_dropped_after_their_last_use():
    batch = faces((A,), [1], chips=(np.zeros((2, 2, 3), np.uint8),), chip_to_image=np.zeros((1, 2, 3)))
    aligned = batch.with_crops(
        np.zeros((1, 112, 112, 3), np.uint8), np.array([True]), np.zeros(1, np.float32), np.zeros(1, np.float32)
    )
    assert aligned.chips == () and len(aligned.chip_to_image) == 0 and len(aligned.crops) == 1
    embedded = aligned.with_embeddings(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    assert len(embedded.crops) == 0 and embedded.embeddings.shape == (1, 4)


@pytest.mark.parametrize(
    ("counts", "max_faces", "expected"),
    [
        ([], 3, []),
        ([0], 3, [[0]]),
        ([1, 2, 1, 3], 3, [[1, 2], [1], [3]]),
        ([9, 0, 0, 4, 1], 3, [[9], [0, 0], [4], [1]]),      # an image with more is a batch of its own
        ([1, 1], 99, [[1, 1]]),
        ([0, 2, 0], 0, [[0], [2], [0]]),
    ],
)
def test_parts_do_not_split_an_image(counts, max_faces, expected):
    batch = faces(tuple(ImageRecord(str(i)) for i in range(len(counts))), counts)
    parts = batch.parts(max_faces)
    assert [part.face_counts.tolist() for part in parts] == expected
    assert [record.uri for part in parts for record in part.records] == [str(i) for i in range(len(counts))]
    assert [score for part in parts for score in part.scores] == batch.scores.tolist()
