"""Broken, odd and hostile files: each gets its status and reason, in little time and memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.batch import Status, TodoRow
from pipeline.input.fetch import Fetch
from pipeline.schemas import records_to_table
from pipeline.stages.codec import DecodeError
from pipeline.stages.decode import Decode
from pipeline.stages.image import decode_image
from pipeline.stages.pillow import prepare_pillow
from pipeline.storage.uris import local_uri
from tests.support import corpus

pytestmark = [
    pytest.mark.timeout(120),                # of one case; the promise is CASE_SECONDS of CPU
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),       # pytest resets what prepare_pillow set
]

ROOT = Path(__file__).parent.parent
BOMBS = [*corpus.bombs(), *(sample for sample in corpus.samples() if "-of-" in sample.name or "10000" in sample.name)]
CASE_SECONDS = 3.0            # of CPU; the slowest takes 1.2: an image of 90 megapixels that is cut in half


@pytest.fixture(scope="module", autouse=True)
def pillow():
    """Set Pillow up as the job does."""
    prepare_pillow()


def outcome(content):
    """Status and reason of a file, its pixels, and its format."""
    try:
        decoded = decode_image(content, max_pixels=corpus.MAX_PIXELS, min_side_px=None)
    except DecodeError as error:
        return (error.status, error.reason), None, error.format
    width, height = decoded.header.decoded_wh
    assert decoded.pixels.shape == (height, width, 3)
    return (Status.OK, None), decoded.pixels, decoded.header.format


@pytest.mark.parametrize("sample", corpus.samples(), ids=lambda sample: sample.name)
def test_every_file_gets_its_status_and_reason(sample):
    started = time.process_time()
    found, _, format = outcome(sample.content)
    assert found in sample.outcomes
    assert sample.format in (None, format)
    assert time.process_time() - started < CASE_SECONDS


@pytest.mark.parametrize("extension", corpus.small_files())
def test_a_cut_file_is_unreadable_or_has_the_same_pixels(extension):
    """Cut at every 64th byte and at each of the last twenty. No file is accepted with pixels missing."""
    _, content = corpus.small_files()[extension]
    whole = outcome(content)[1]
    for end in (*range(0, len(content), 64), *range(len(content) - 20, len(content))):
        found, pixels, _ = outcome(content[:end])
        if pixels is None:
            assert found[0] is Status.UNREADABLE and found[1].endswith((corpus.CUT_OFF, "empty file")), end
        else:
            assert (pixels == whole).all(), end


def test_a_cut_jpeg_with_an_end_marker_is_unreadable():
    for content in (corpus.jpeg(), corpus.jpeg(progressive=True), corpus.jpeg(restart_marker_rows=1)):
        for end in range(2, len(content), 97):
            found, pixels, _ = outcome(content[:end] + b"\xff\xd9")
            assert pixels is None and found[0] is Status.UNREADABLE


MEASURE = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))     # a bomb that goes off kills only this process
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image
from pipeline.stages.pillow import prepare_pillow
prepare_pillow()
for folder in sys.argv[1:]:
    for path in sorted(Path(folder).iterdir()):
        try:
            decode_image(path.read_bytes(), max_pixels=200_000_000, min_side_px=None)
        except DecodeError:
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_bombs_take_no_memory(tmp_path):
    """One process decodes a good file of each kind, then all bombs."""
    for name, contents in (
        ("good", {sample.name: sample.content for sample in corpus.samples() if sample.name.startswith("plain.")}),
        ("bombs", {sample.name: sample.content for sample in BOMBS}),
    ):
        (tmp_path / name).mkdir()
        for file, content in contents.items():
            (tmp_path / name / file).write_bytes(content)
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "good", tmp_path / "bombs"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    before_mib, after_mib = map(int, ended.stdout.split())
    # The largest file has 12 MB and is copied once. One image of 5,000 × 5,000 would take 170.
    assert len(BOMBS) > 25 and after_mib - before_mib < 64, f"{before_mib} MiB before, {after_mib} after"


def test_the_corpus_on_disk_is_decoded_as_expected(tmp_path):
    """In batches, by threads, with odd names, links and special files."""
    expected = dict(corpus.build_corpus(tmp_path))
    uris = {local_uri(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)): name for name in expected}
    decode = Decode(
        Fetch(), max_pixels=corpus.MAX_PIXELS, min_side_px=corpus.least_side(1280), threads=2, batch_images=50,
        batch_bytes=256 << 20,
    )
    records = [record for batch in decode([TodoRow(uri) for uri in uris]) for record in batch.records]
    assert [record.uri for record in records] == list(uris)
    wrong = [
        (record.uri, record.status, record.error) for record in records
        if (record.status, record.error) not in expected[uris[record.uri]]
    ]
    assert wrong == []
    assert records_to_table(tuple(records)).num_rows == len(expected)      # no claimed size or name breaks the table
    kinds = {record.error for record in records} - {None}
    assert len(expected) > 1000 and len(kinds) < 60


def test_two_files_of_the_same_kind_have_the_same_reason():
    """Reasons are counted by kind, so they hold no sizes, offsets, bytes or addresses."""
    pictures = (corpus.picture(), corpus.picture()[:40, :72])
    for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"):
        found = {outcome(corpus.encode(pixels, format)[:-200])[0] for pixels in pictures}
        assert found == {(Status.UNREADABLE, f"{format}: {corpus.CUT_OFF}")}
