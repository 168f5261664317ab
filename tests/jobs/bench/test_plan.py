from jobs.bench.plan import GREY_PNG
from pipeline.stages.image import decode_image


def test_the_grey_pixel_is_one():
    assert decode_image(GREY_PNG, max_pixels=1, min_side_px=None).pixels.shape == (1, 1, 3)
