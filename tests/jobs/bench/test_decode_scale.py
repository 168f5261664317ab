import cv2
import numpy as np
import pytest

from jobs.bench.decode_scale import cell, write_mosaics


def png(value):
    return cv2.imencode(".png", np.full((144, 144, 3), value, np.uint8))[1].tobytes()


@pytest.mark.parametrize(("count", "mosaics"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_every_face_is_in_the_cell_of_its_person(tmp_path, count, mosaics):
    people = [f"person {i}" for i in range(count)]
    rows, who = write_mosaics([png(40 * i) for i in range(count)], people, tmp_path, cells=2)
    assert len(rows) == mosaics and sorted(who.values()) == people
    for (path, column, row), person in who.items():
        picture = cv2.imread(path)
        assert picture.shape == (288, 288, 3)
        middle = np.array([column, row]) * 144 + 72
        assert abs(int(picture[middle[1], middle[0], 0]) - 40 * int(person.split()[1])) <= 3
        assert cell(np.array([*(middle - 40), *(middle + 40)])) == (column, row)
