from collections import Counter

import pytest

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, TodoRow
from pipeline.run.quarantine import decode_guarded, guard_decode


class Notes(Counter):
    """Counts in a dictionary."""

    def count(self, what):
        self[what] += 1
        return self[what] - 1

    def forget(self, what):
        del self[what]


class Died(BaseException):
    """The process is gone, and all that was in it."""


def decode(rows):
    """Two images a batch."""
    for start in range(0, len(rows), 2):
        records = tuple(ImageRecord(row.uri) for row in rows[start : start + 2])
        yield ImageBatch(records, (NO_PIXELS,) * len(records))


def attempt(notes, uris, deadly):
    """What one process does of a block, until it dies at an image, somewhere in the pool."""
    done = []
    for batch in guard_decode({"decode": lambda threads: decode}, notes)["decode"](1)([TodoRow(uri) for uri in uris]):
        if deadly & {record.uri for record in batch.records if record.error is None}:
            raise Died
        done.append([(record.uri, record.status) for record in batch.records])
    return done


@pytest.mark.parametrize(
    ("uris", "deadly", "deaths", "left_out"),
    [("", "", 0, ""), ("a", "", 0, ""), ("abcde", "", 0, ""), ("a", "a", 4, "a"), ("abcde", "c", 4, "c"),
     ("abcde", "ae", 6, "ae")],
)
def test_a_deadly_image_is_left_out_and_all_others_are_done(uris, deadly, deaths, left_out):
    notes, died = Notes(), 0
    while True:
        try:
            done = attempt(notes, uris, set(deadly))
            break
        except Died:
            died += 1
    assert died == deaths
    assert [(uri, str(status)) for batch in done for uri, status in batch] == [
        (uri, "failed" if uri in left_out else "ok") for uri in uris
    ]
    assert all(len(batch) == (1 if deaths else min(2, len(uris) - 2 * i)) for i, batch in enumerate(done))
    assert set(notes) == {f"image {uri}" for uri in left_out}     # another death in the block does not start it anew


def test_one_death_changes_nothing_but_the_time():
    """A node that is lost takes whatever was in its processes with it."""
    notes = Notes()
    with pytest.raises(Died):
        attempt(notes, "abc", {"b"})
    assert attempt(notes, "abc", set()) == [[("a", "ok"), ("b", "ok")], [("c", "ok")]] and not notes


def test_the_reason_says_what_happened():
    notes = Notes({"block a": 2, "image a": 2})
    record = next(decode_guarded(decode, notes, [TodoRow("a", size=7, etag="e")])).records[0]
    assert "died 2 times at this image" in record.error and (record.file_bytes, record.etag) == (7, "e")
