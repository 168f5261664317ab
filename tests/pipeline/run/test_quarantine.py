import pytest

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, TodoRow
from pipeline.run.quarantine import decode_quarantined
from tests.support.stages import FakeBoard


class Died(BaseException):
    """Stands for the death of the process."""


def decode(rows):
    """Two images a batch."""
    for start in range(0, len(rows), 2):
        records = tuple(ImageRecord(row.uri) for row in rows[start : start + 2])
        yield ImageBatch(records, (NO_PIXELS,) * len(records))


def attempt(board, uris, deadly):
    """The images of a block that one process does, until it dies at one of them somewhere in the pool."""
    done = []
    for batch in decode_quarantined(decode, board, [TodoRow(uri) for uri in uris]):
        if deadly & {record.uri for record in batch.records if record.error is None}:
            raise Died
        done.append([(record.uri, record.status) for record in batch.records])
    return done


@pytest.mark.parametrize(
    ("uris", "deadly", "deaths", "left_out"),
    [("", "", 0, ""), ("a", "", 0, ""), ("abcde", "", 0, ""), ("a", "a", 4, "a"), ("abcde", "c", 4, "c"),
     ("abcde", "ae", 6, "ae")],
)
def test_an_image_that_kills_its_process_is_left_out_and_all_others_are_done(uris, deadly, deaths, left_out):
    board, died = FakeBoard(), 0
    while True:
        try:
            done = attempt(board, uris, set(deadly))
            break
        except Died:
            died += 1
    assert died == deaths
    assert [(uri, str(status)) for batch in done for uri, status in batch] == [
        (uri, "failed" if uri in left_out else "ok") for uri in uris
    ]
    assert all(len(batch) == (1 if deaths else min(2, len(uris) - 2 * i)) for i, batch in enumerate(done))
    assert set(board.counts) == {f"image {uri}" for uri in left_out}    # a later death in the block leaves them out


def test_after_one_death_the_block_is_decoded_as_before():
    """A lost node takes all blocks of its processes with it."""
    board = FakeBoard()
    with pytest.raises(Died):
        attempt(board, "abc", {"b"})
    assert attempt(board, "abc", set()) == [[("a", "ok"), ("b", "ok")], [("c", "ok")]]
    assert not board.counts


def test_the_record_names_the_reason():
    board = FakeBoard(**{"block a": 2, "image a": 2})
    record = next(decode_quarantined(decode, board, [TodoRow("a", size=7, etag="e")])).records[0]
    assert "died 2 times at this image" in record.error and (record.file_bytes, record.etag) == (7, "e")
