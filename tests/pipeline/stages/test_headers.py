"""Our own parsing of files; test_bad_input.py tests the outcome of whole files."""

import struct

import numpy as np
import pytest

from pipeline.stages import headers
from pipeline.stages.headers import BombError, is_cut_off, read_jpeg, read_png, read_tiff, sniff_format
from tests.support import corpus


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (b"", None),
        (b"\xff\xd8", "jpeg"),
        (b"\x89PNG", "png"),
        (b"GIF89a", "gif"),
        (b"GIF88a", None),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "bmp"),
        (b"BM is a text, not a picture", None),
        (b"MM\0*", "tiff"),
        (b"II+\0", "tiff"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0avifmiaf", "avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavif", "avif"),
        (b"\0\0\0\x14ftypisom\0\0\0\0isomavif", None),     # the brand comes after the box
    ],
)
def test_the_first_bytes_give_the_format(content, format):
    assert sniff_format(content) == format


def segment(marker, body=b""):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


FRAME = segment(0xC0, b"\x08\0\x01\0\x02\x03" + bytes(9))
SCAN = segment(0xDA, b"\x03" + bytes(9))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + FRAME, b"\xff\xd8" + SCAN[:-1], b"\xff\xd8\xff\xd9" + FRAME + SCAN],
    ids=["nothing", "half a marker", "no scan", "half a scan header", "end marker before the scan"],
)
def test_a_jpeg_without_a_scan_has_no_header(content):
    assert read_jpeg(content) is None


def test_a_stripped_jpeg_keeps_only_what_decoding_needs():
    exif, comment, profile = segment(0xE1, b"Exif\0\0II*\0"), segment(0xFE, b"hello"), segment(0xE2, b"ICC_PROFILE\0x")
    jfif, adobe = segment(0xE0, b"JFIF\0\7\1rest"), segment(0xEE, b"Adobe\0d\0\0")
    stray = b"\0ab\xff\0"
    others = [exif, jfif, comment, stray, profile, adobe, b"\xff\xff"]
    content = b"\xff\xd8" + b"".join(others) + FRAME + exif + SCAN + b"data"
    header = read_jpeg(content)
    assert header.stripped == b"\xff\xd8" + segment(0xE0, b"JFIF\0\1\1rest") + adobe + FRAME + SCAN
    assert content[header.data_start :] == b"data"
    assert (header.process, header.precision_bits, header.components, header.scans) == (0xC0, 8, 3, 1)
    assert header.exif == b"II*\0"


@pytest.mark.parametrize(
    ("process", "of_scan", "data", "scans"),
    [
        (0xC0, 3, b"", 1),
        (0xC0, 3, SCAN, 1),                                  # one scan has all components: no decoder reads further
        (0xC0, 1, SCAN + SCAN, 3),
        (0xC2, 3, b"a\xff\0b\xff\xd0c", 1),
        (0xC2, 3, b"a" + segment(0xC4, b"\xff\xda") + b"b" + SCAN + b"c" + SCAN, 3),
        (0xC2, 3, SCAN + b"\xff\xd9" + SCAN, 2),             # after the end marker comes another picture
        (0xC2, 3, SCAN * 500, 101),
    ],
)
def test_scans_are_counted(process, of_scan, data, scans):
    frame, scan = segment(process, b"\x08\0\x01\0\x02\x03"), segment(0xDA, bytes([of_scan]) + bytes(9))
    assert read_jpeg(b"\xff\xd8" + frame + scan + data).scans == scans


@pytest.mark.parametrize("make", [
    lambda: read_jpeg(b"\xff\xd8" + segment(0xFE) * 5 + FRAME + SCAN),
    lambda: read_jpeg(b"\xff\xd8" + segment(0xC2, b"\x08\0\x01\0\x02\x03") + SCAN + segment(0xC4) * 5),
    lambda: read_png(corpus.png_with(*[corpus.png_chunk(b"teSt", b"")] * 5)),
    lambda: read_tiff(corpus.ifd(*[(256, 3, 1, 1)] * 6)),
    lambda: read_tiff(corpus.ifd((273, 4, 6, 0), after=bytes(24))),
], ids=["segments", "segments between scans", "chunks", "tags", "strips"])
def test_files_with_too_many_parts_are_refused(monkeypatch, make):
    monkeypatch.setattr(headers, "MAX_PARTS", 5)
    with pytest.raises(BombError, match="more than 5 "):
        make()


def test_a_stripped_png_keeps_only_what_decoding_needs():
    header, data, end = (corpus.png_chunk(kind, b"x") for kind in (b"IHDR", b"IDAT", b"IEND"))
    exif, text, see_through = (corpus.png_chunk(kind, b"y") for kind in (b"eXIf", b"tEXt", b"tRNS"))
    start = b"\x89PNG\r\n\x1a\n"
    parts = read_png(start + header + text + see_through + data + exif + end + b"trailer")
    assert (parts.stripped, parts.exif, parts.cut_off) == (start + header + see_through + data + end, b"y", False)
    cut = read_png(start + header + data[:-1])
    assert (cut.stripped, cut.exif, cut.cut_off) == (start + header + data[:-1], None, True)
    assert read_png(start + header + data).cut_off


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tile_size_and_truncation_of_a_tiff(order, big):
    content = corpus.ifd((322, 3, 1, 16), (323, 4, 1, 32), (324, 4, 1, 200), (325, 4, 1, 50), order=order, big=big)
    assert read_tiff(content.ljust(250, b"\0")) == headers.TiffParts(16 * 32, cut_off=False)
    assert read_tiff(content.ljust(249, b"\0")) == headers.TiffParts(16 * 32, cut_off=True)
    assert read_tiff(content[:-1]) == headers.TiffParts(0, cut_off=True)
    assert read_tiff(corpus.ifd(order=order, big=big)) == headers.TiffParts(0, cut_off=False)


def test_truncation_of_a_tiff_whose_strips_lie_at_its_end():
    content = corpus.ifd((273, 4, 2, 100), (279, 3, 2, struct.pack("<HH", 10, 20)))
    content = content.ljust(100, b"\0") + struct.pack("<LL", 300, 320)
    assert not read_tiff(content.ljust(340, b"\0")).cut_off
    assert read_tiff(content.ljust(339, b"\0")).cut_off


@pytest.mark.parametrize("extension", corpus.small_files())
def test_whole_files_are_not_cut_off(extension):
    format, content = corpus.small_files()[extension]
    assert not is_cut_off(content, format) and is_cut_off(content[: len(content) // 2], format)


def test_run_length_coded_bmps_with_long_rows_are_refused():
    headers.check_bmp(corpus.bmp_of_runs(65_535, 1, b""))
    headers.check_bmp(corpus.encode(np.zeros((1, 70_000), np.uint8), "BMP"))
    with pytest.raises(BombError, match="65535 pixels wide"):
        headers.check_bmp(corpus.bmp_of_runs(65_536, 1, b""))
