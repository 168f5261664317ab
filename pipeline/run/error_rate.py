"""Notices during a run that nearly all images fail: then something is wrong as a whole, and more hours do not help."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from pipeline.batch import RETRIED

WINDOW_IMAGES = 1000
FEWEST_IMAGES = 100     # in a smaller run the end comes soon enough, and its first images say little


class ErrorRate:
    """Of the last images of a run, the share that is `failed` or `fetch_failed`.

    The statuses of bad files do not count: they are in the data. images: to do; retried: how many of them failed in the
    run before and may well fail again, so that their share is allowed on top of max_share.
    """

    def __init__(self, max_share: float, images: int, retried: int) -> None:
        self._allowed = max_share + (retried / images if images else 0)
        self._enough = max(FEWEST_IMAGES, min(WINDOW_IMAGES, -(-images // 10)))
        self._last: deque[tuple[int, int]] = deque()        # of each part: images, and how many of them failed
        self._images = self._failed = 0

    def add(self, images: int, counts: Mapping[str, int]) -> str | None:
        """Count the images of a part by status; returns what is wrong if too many of the last ones failed."""
        failed = sum(counts[status] for status in RETRIED)
        self._last.append((images, failed))
        self._images, self._failed = self._images + images, self._failed + failed
        while self._images - self._last[0][0] >= WINDOW_IMAGES:
            gone, gone_failed = self._last.popleft()
            self._images, self._failed = self._images - gone, self._failed - gone_failed
        if self._images < self._enough or self._failed <= self._allowed * self._images:
            return None
        return f"{self._failed:,} of the last {self._images:,} images are {' or '.join(RETRIED)}"
