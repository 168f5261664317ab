import pytest
from PIL import Image

from pipeline.batch import Status
from pipeline.stages.codec import decode_failure, exif_orientation
from tests.support import corpus

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize(
    ("content", "orientation"),
    [(None, None), (b"", None), (exif(1), 1), (exif(8), 8), (exif(9), None), (exif(0), None), (b"Exif\0\0II*\0", None),
     (exif(6)[:-9], None), (b"\xff" * 40, None)],
)
def test_invalid_exif_gives_no_orientation(content, orientation):
    assert exif_orientation(content) == orientation


def lossless(content):
    return content.replace(b"\xff\xc0", b"\xff\xc3")


def of_12_bits(content):
    at = content.index(b"\xff\xc0") + 4
    return content[:at] + b"\x0c" + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "message", "status", "reason"),
    [
        (corpus.jpeg()[:300], "not supported", Status.UNREADABLE, "JPEG: cut off before the picture ends"),
        (lossless(corpus.jpeg()), "", Status.UNSUPPORTED, "JPEG: lossless"),
        (of_12_bits(corpus.jpeg()), "", Status.UNSUPPORTED, "JPEG: 12 bits a sample"),
        (corpus.jpeg(), "Not supported", Status.UNSUPPORTED, "JPEG: a variant we do not decode"),
        (corpus.jpeg(), "Unsupported marker", Status.UNREADABLE, "JPEG: damaged pixels"),
    ],
)
def test_a_failure_gets_a_status_and_a_reason_of_ours(content, message, status, reason):
    error = decode_failure(message, "jpeg", content, "pixels")
    assert (error.status, error.reason, error.format) == (status, reason, "jpeg")
