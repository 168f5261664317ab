"""The window over a file: right bytes, few and small reads of the file below."""

from __future__ import annotations

import io
import random

import pytest

from pipeline.input.windows import NEAR_BYTES, Windowed

CONTENT = random.Random(0).randbytes(300_000)


class Reads(io.BytesIO):
    """A file that notes the place and size of each read; it returns at most `most` bytes at a time."""

    def __init__(self, content: bytes, most: int = 1 << 30):
        super().__init__(content)
        self.asked: list[tuple[int, int]] = []
        self.most = most

    def read(self, n_bytes=-1):
        self.asked.append((self.tell(), n_bytes))
        return super().read(min(n_bytes, self.most))


@pytest.mark.parametrize("content", [b"", b"x"])
def test_small_files(content):
    file = Windowed(io.BytesIO(content), 10, 100)
    assert (file.read(), file.read(5), file.tell(), file.size) == (content, b"", len(content), len(content))


@pytest.mark.parametrize("most", [1 << 30, 777])
def test_any_reads_give_the_bytes_of_the_file(most):
    chance = random.Random(1)
    file, plain = Windowed(Reads(CONTENT, most), 64, 5000), io.BytesIO(CONTENT)
    for _ in range(500):
        place, n_bytes = chance.randrange(len(CONTENT) + 50), chance.choice([0, 1, 30, 512, 9000, 40_000])
        assert file.seek(place) == plain.seek(place)
        assert file.read(n_bytes) == plain.read(n_bytes)
        assert file.tell() == plain.tell() or place > len(CONTENT)
    assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10 and file.read() == CONTENT[-10:]
    with pytest.raises(OSError, match="before the beginning"):
        file.seek(-1)


def test_a_jump_reads_little_and_reading_on_reads_more_each_time():
    below = Reads(CONTENT)
    file = Windowed(below, 1000, 8000)
    for place in (0, 100_000, 200_000):
        file.seek(place)
        file.read(512)
    assert below.asked == [(0, 1000), (100_000, 1000), (200_000, 1000)]
    below.asked.clear()
    file.read(40_000)
    assert [n_bytes for _, n_bytes in below.asked][:4] == [8000, 8000, 8000, 8000]
    file.seek(file.tell() + NEAR_BYTES // 2)
    below.asked.clear()
    file.read(1)
    assert below.asked[0][1] >= 8000          # a small jump is reading on


def test_a_file_that_has_shrunk():
    below = Reads(CONTENT)
    file = Windowed(below, 1000, 8000)
    below.truncate(50)
    file.seek(5000)
    with pytest.raises(EOFError, match="the file ends at byte"):
        file.read(10)


def test_a_read_that_failed_can_be_repeated():
    class Failing(io.BytesIO):
        fails = False

        def read(self, n_bytes=-1):
            if self.fails:
                raise OSError("the store does not answer")
            return super().read(n_bytes)

    below = Failing(CONTENT)
    file = Windowed(below, 1000, 8000)
    file.read(500)
    for place in (700, 5000, 200_000):
        file.seek(place)
        below.fails = True
        with pytest.raises(OSError, match="the store does not answer"):
            file.read(5000)
        below.fails = False
        file.seek(place)
        assert file.read(5000) == CONTENT[place : place + 5000]


def test_closing_closes_the_file_below():
    below = io.BytesIO(CONTENT)
    with Windowed(below, 10, 100) as file:
        assert file.readable() and file.seekable() and not file.closed
    assert file.closed and below.closed
