import pytest

from pipeline.batch import Status
from pipeline.run.error_rate import ErrorRate


def part(images, **counts):
    return images, {status.value: 0 for status in Status} | counts


def first_stop(rate, parts):
    """The number of the part at which it stops; None if it does not."""
    return next((number for number, each in enumerate(parts) if rate.add(*each)), None)


@pytest.mark.parametrize(
    ("images", "retried", "parts", "stops_at"),
    [
        (0, 0, [], None),
        (50, 0, [part(50, fetch_failed=50)], None),                          # the end comes soon
        (100, 0, [part(50, failed=50), part(50)], 1),
        (1_000, 0, [part(99, failed=99), part(1)], 1),
        (5_000, 0, [part(100, failed=100)] * 5, 4),                          # a tenth
        (10**6, 0, [part(100, failed=60, fetch_failed=40)] * 10, 9),
        (10**6, 0, [part(100, failed=10)] * 50, None),                       # exactly what is allowed
        (10**6, 0, [part(100, unreadable=50, unsupported=30, too_large=20)] * 50, None),     # bad files
        (10**6, 0, [part(100)] * 50 + [part(100, fetch_failed=100)] * 5, 51),
        (10**6, 0, [part(5_000, failed=400)] * 3 + [part(5_000, failed=501)], 3),
        (10**6, 0, [part(500, failed=500), *[part(500)] * 9], 1),
        (5_000, 5_000, [part(500, fetch_failed=500)] * 10, None),            # they failed before
        (5_000, 500, [part(500, fetch_failed=100)] * 10, None),
        (5_000, 500, [part(500, fetch_failed=101)] * 10, 0),
    ],
)
def test_it_stops_when_too_many_of_the_last_images_fail(images, retried, parts, stops_at):
    assert first_stop(ErrorRate(0.1, images, retried), parts) == stops_at


def test_what_it_says():
    assert ErrorRate(0.5, 1_000, 0).add(*part(1_234, failed=1_000, fetch_failed=200)) == (
        "1,200 of the last 1,234 images are fetch_failed or failed"
    )


def test_all_may_fail_if_that_is_allowed():
    assert ErrorRate(1.0, 1_000, 0).add(*part(1_000, failed=1_000)) is None
