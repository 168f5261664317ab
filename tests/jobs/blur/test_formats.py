"""Copies in every format: what they show, what they keep, and what they must not hold."""

import io
import re

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from jobs.blur.formats import NotWritable, copy_without_faces
from jobs.blur.hide import How, regions_of
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image
from pipeline.stages.pillow import prepare_pillow
from tests.support import corpus

BOX = np.array([[30.0, 20.0, 70.0, 50.0]], np.float32)      # of the corpus' picture of 120 × 80; with margin 20 to 80
NOT_COPIED = {"animated.png", "animated.webp", "animated.gif", "pages.tif", "16-bit.tif"}
SECRET = b"a secret in the metadata"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

prepare_pillow()


def decoded(content):
    return decode_image(content, max_pixels=10**8, min_side_px=None)


def copied(content, boxes=BOX, how=How.FILL):
    header = decoded(content).header
    turn = (header.exif_orientation or 1) if header.must_turn else 1
    regions = regions_of(boxes, (header.width, header.height), turn)
    return copy_without_faces(content, header.format, header.exif_orientation, regions, how)


def samples():
    """One of each kind of file that is decoded."""
    for sample in corpus.good_samples():
        if re.search("quirk|0000|of-250-mb", sample.name):      # slow ones, for the decoder's own test
            continue
        yield pytest.param(sample.content, sample.name in NOT_COPIED, id=sample.name)
    for name, content in corpus.jpeg_quirks():
        if name.endswith(("no-end", "twice", "next-picture-for-the-end", "from-1")):
            yield pytest.param(content, False, id=name)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(("content", "kept_back"), list(samples()))
def test_a_copy_shows_the_picture_without_the_face(content, kept_back):
    try:
        before = decoded(content)
    except DecodeError:
        pytest.skip("a damaged one")
    if kept_back:
        with pytest.raises(NotWritable):
            copied(content)
        return
    for boxes in (BOX, BOX[:0]):
        after = decoded(copied(content, boxes))
        assert after.header.format == before.header.format and after.pixels.shape == before.pixels.shape
        difference = np.abs(after.pixels.astype(int) - before.pixels.astype(int)).mean(axis=-1)
        if len(boxes):
            assert before.pixels.shape != (80, 120, 3) or difference[20:50, 30:70].mean() > 60
            difference[5:65, 15:85] = 0
        assert difference.mean() < 3


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("boxes", [BOX, BOX[:0]], ids=["face", "no face"])
def test_metadata_goes_but_orientation_profile_and_resolution(format, orientation, boxes):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    out = io.BytesIO()
    options = {"xmp": SECRET} if format in ("JPEG", "WEBP", "AVIF") else {}
    picture = Image.fromarray(corpus.picture())
    picture.save(out, format, exif=exif, icc_profile=PROFILE, dpi=(300, 300), quality=80, **options)
    original = out.getvalue() + (b"\xff\xd8" + SECRET if format == "JPEG" else b"")
    assert SECRET in original
    copy = copied(original, boxes)
    image = Image.open(io.BytesIO(copy))
    assert SECRET not in copy and not image.getexif().get_ifd(0x8825)
    assert image.info["icc_profile"] == PROFILE
    assert decoded(copy).pixels.shape == decoded(original).pixels.shape
    if format in ("JPEG", "PNG", "TIFF"):
        assert [round(float(number)) for number in image.info["dpi"]] == [300, 300]


@pytest.mark.parametrize(("mode", "subsampling", "progressive"), [
    ("L", 0, False), ("CMYK", 0, True), ("RGB", 0, False), ("RGB", 1, True), ("RGB", 2, False),
])
def test_a_jpeg_keeps_its_quality(mode, subsampling, progressive):
    out = io.BytesIO()
    picture = Image.fromarray(corpus.picture()).convert(mode)
    picture.save(out, "JPEG", quality=71, progressive=progressive, subsampling=subsampling)
    copy = copied(out.getvalue())
    before, after = Image.open(out), Image.open(io.BytesIO(copy))
    assert before.quantization == after.quantization and before.layer == after.layer
    assert before.info.get("progressive") == after.info.get("progressive") and before.mode == after.mode


def test_a_jpeg_without_a_face_keeps_every_coefficient():
    out = io.BytesIO()
    Image.fromarray(corpus.picture()).save(out, "JPEG", quality=60)
    assert np.array_equal(decoded(copied(out.getvalue(), BOX[:0])).pixels, decoded(out.getvalue()).pixels)


def test_a_png_of_16_bits_a_colour_stays_so():
    pixels = np.random.default_rng(3).integers(0, 65535, (80, 120, 4), np.uint16)
    pixels[:4, :4, 3] = 0
    copy = copied(bytes(cv2.imencode(".png", pixels)[1]))
    after = cv2.imdecode(np.frombuffer(copy, np.uint8), cv2.IMREAD_UNCHANGED)
    assert after.dtype == np.uint16 and np.array_equal(after[70:], pixels[70:]) and not after[:4, :4].any()
    assert (after[20:50, 30:70] == (0, 0, 0, 65535)).all()


def test_what_transparency_hides_is_not_in_the_copy():
    pixels = np.dstack([corpus.picture(), np.full((80, 120), 255, np.uint8)])
    pixels[60:, :, 3] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    after = np.asarray(Image.open(io.BytesIO(copied(out.getvalue(), BOX[:0]))))
    assert not after[60:].any() and np.array_equal(after[:60], pixels[:60])


def test_a_second_picture_in_a_jpeg_is_left_out():
    first, second = (Image.fromarray(np.full((80, 120, 3), grey, np.uint8)) for grey in (50, 200))
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    assert out.getvalue().count(b"\xff\xd8\xff") == 2
    for boxes in (BOX, BOX[:0]):
        assert copied(out.getvalue(), boxes).count(b"\xff\xd8\xff") == 1
