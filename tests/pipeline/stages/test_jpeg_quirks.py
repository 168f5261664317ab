import re

import numpy as np
import pytest

from pipeline.stages.image import decode_image
from pipeline.stages.jpeg import read_size
from pipeline.stages.jpeg_quirks import rewrite
from tests.support import corpus

SCAN = re.compile(rb"\xff\xda")


@pytest.mark.parametrize("content", [
    b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", corpus.jpeg()[:30], corpus.jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1),
    corpus.jpeg()[: corpus.jpeg().index(b"\xff\xda") + 4] + b"\xff\xd9",
    b"\xff\xd8" + corpus.jpeg_segment(0xC0, b"\x08\0\x01\0\x01\0") + corpus.jpeg_segment(0xDA, b"\0\0\0\0") + b"data",
    b"\xff\xd8" + corpus.jpeg_segment(0xC0, b"\x08\0\x01\0\x01\1\1\x11\0") + corpus.jpeg_segment(0xDA, b"") + b"data",
], ids=["empty", "start", "no picture", "cut in the header", "arithmetic", "cut scan header", "no components",
        "no scan"])
def test_what_is_no_picture_or_of_a_rare_process_is_not_rewritten(content):
    assert rewrite(content) is None


@pytest.mark.parametrize("content", [
    corpus.jpeg(), corpus.jpeg(progressive=True), corpus.jpeg(restart_marker_rows=1), corpus.in_scans(corpus.jpeg()),
    corpus.ycck_jpeg(), corpus.flat_jpeg(),
], ids=["plain", "progressive", "restarts", "scans", "ycck", "flat"])
def test_a_good_file_keeps_its_picture_bit_by_bit(content):
    def pixels(file):
        return decode_image(file, max_pixels=10**6, min_side_px=None).pixels

    assert read_size(content) == (120, 80)
    rewritten = rewrite(content)
    np.testing.assert_array_equal(pixels(rewritten), pixels(content))
    assert rewrite(rewritten) == rewritten
    np.testing.assert_array_equal(pixels(content[:-2]), pixels(content))


@pytest.mark.parametrize("number", range(len(SCAN.findall(corpus.jpeg(progressive=True)))))
def test_a_scan_that_comes_twice_is_taken_once(number):
    progressive = corpus.jpeg(progressive=True)
    assert rewrite(corpus.repeated_scan(progressive, number)) == rewrite(progressive)


def test_an_unfinished_progression_needs_its_end_mark():
    """With the mark it is what its maker wanted, without it something is missing."""
    progressive = corpus.jpeg(progressive=True)
    first_scans = progressive[: progressive.rindex(b"\xff\xc4")]
    assert rewrite(first_scans) is None
    assert len(SCAN.findall(rewrite(first_scans + b"\xff\xd9"))) == len(SCAN.findall(progressive)) - 1


@pytest.mark.parametrize(("restarts", "found", "numbers"), [(0, 0, []), (9, 0, []), (9, 9, range(9)), (9, 8, None)])
def test_restarts_are_counted(restarts, found, numbers):
    """The picture has ten rows of blocks, so nine restarts."""
    content = corpus.jpeg(restart_marker_rows=1) if restarts else corpus.jpeg()
    start = content.index(b"\xff\xda")
    markers = re.compile(rb"\xff[\xd0-\xd7]")
    kept = iter(range(restarts))
    data = markers.sub(lambda m: b"\xff\xd5" if next(kept) < found else b"", content[start:])
    rewritten = rewrite(content[:start] + data)
    if numbers is None:
        assert rewritten is None
    else:
        assert [m[1] - 0xD0 for m in markers.findall(rewritten)] == [number % 8 for number in numbers]
        assert (b"\xff\xdd\0\4\0\0" in rewritten) is (found == 0)
