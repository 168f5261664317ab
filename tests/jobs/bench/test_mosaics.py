import numpy as np
import pytest

from jobs.bench.mosaics import arrange


@pytest.mark.parametrize(
    ("photos", "columns", "rows", "places"),
    [
        (0, 1, 1, []),
        (3, 4, 1, []),                                                      # not enough for one
        (5, 2, 2, [[(0, 0), (10, 0), (0, 600), (20, 600)]]),                # the fifth is left out
        (4, 2, 1, [[(0, 0), (10, 0)], [(0, 0), (20, 0)]]),
    ],
)
def test_photos_and_their_faces_keep_their_places(photos, columns, rows, places):
    """Photos of 10, 10, 20, … px, each with one face at its top left corner."""
    pixels = [np.full((600, 10 * (1 + i // 2), 3), i, np.uint8) for i in range(photos)]
    boxes = [np.array([[0, 0, 5, 5]], np.float32)] * photos
    mosaics = list(arrange(pixels, boxes, columns, rows))
    assert [[tuple(box[:2]) for box in mosaic.boxes.tolist()] for mosaic in mosaics] == places
    for number, mosaic in enumerate(mosaics):
        for i, (x, y) in enumerate(places[number]):
            assert mosaic.pixels[y, x, 0] == number * columns * rows + i
