import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, TodoRow
from pipeline.run.quarantine import LOST_NODES, Quarantine, left_out, quarantined
from pipeline.run.turns import Turns
from tests.support.stages import FakeBoard


class Died(BaseException):
    """Stands for the death of the process."""


def decode(rows):
    """Two images a batch."""
    for start in range(0, len(rows), 2):
        records = tuple(ImageRecord(row.uri) for row in rows[start : start + 2])
        yield ImageBatch(records, (NO_PIXELS,) * len(records))


def leave_out(row):
    return ImageBatch((left_out(ImageRecord(row.uri)),), (NO_PIXELS,))


def decode_quarantined(quarantine, turns, rows):
    return quarantined(decode, leave_out, quarantine, turns, rows)


def attempt(board, uris, deadly):
    """The images of a block that one process does, until it dies at one of them somewhere in the pool."""
    return attempt_rows(board, [TodoRow(uri) for uri in uris], deadly)


def attempt_rows(board, rows, deadly):
    done, quarantine = [], Quarantine(board)
    for batches in decode_quarantined(quarantine, Turns(), rows):
        for batch in batches:
            if not deadly.isdisjoint(record.uri for record in batch.records if record.error is None):
                raise Died
            done.append([(record.uri, record.status) for record in batch.records])
    quarantine.forget(rows)
    return done


def do_block(board, uris, deadly):
    """The images of a block, done by one process after the other until one does not die; and the number of deaths."""
    rows = [TodoRow(uri) for uri in uris]
    for deaths in range(1000):
        try:
            return attempt_rows(board, rows, deadly), deaths
        except Died:
            pass
    raise AssertionError("for ever")


@pytest.mark.parametrize(
    ("uris", "deadly", "deaths", "left_out"),
    [("", "", 0, ""), ("a", "", 0, ""), ("abcde", "", 0, ""), ("a", "a", 2, "a"), ("abcde", "c", 4, "c"),
     ("abcde", "ae", 6, "ae")],
)
def test_an_image_that_kills_its_process_is_left_out_and_all_others_are_done(uris, deadly, deaths, left_out):
    board = FakeBoard()
    done, died = do_block(board, uris, set(deadly))
    assert died == deaths
    assert [(uri, str(status)) for batch in done for uri, status in batch] == [
        (uri, "failed" if uri in left_out else "ok") for uri in uris
    ]
    assert all(len(batch) == (1 if deaths else min(2, len(uris) - 2 * i)) for i, batch in enumerate(done))


def attempt_together(board, blocks, deadly):
    """The images of blocks that one process has in work at once, in threads, until it dies at one of them."""
    turns, dead, done = Turns(), threading.Event(), []
    together = threading.Barrier(len(blocks))

    class OfProcess(FakeBoard):
        """The board as a process sees it, which notes nothing after its death."""

        def __init__(self):
            vars(self).update(vars(board))

        def begin(self, what):
            if dead.is_set():
                raise Died
            super().begin(what)

    quarantine = Quarantine(OfProcess())

    def meet():
        """Wait for the other block, unless this one is alone."""
        try:
            together.wait(0.05)
        except threading.BrokenBarrierError:
            together.reset()

    def do(uris):
        rows = [TodoRow(uri) for uri in uris]
        for batches in decode_quarantined(quarantine, turns, rows):
            records = [record for batch in batches for record in batch.records]
            meet()
            if not deadly.isdisjoint(record.uri for record in records if record.error is None):
                dead.set()
            meet()
            if dead.is_set():
                raise Died
            done.extend((record.uri, str(record.status)) for record in records)
        quarantine.forget(rows)

    with ThreadPoolExecutor(len(blocks)) as threads:
        for future in [threads.submit(do, uris) for uris in blocks]:
            future.result()
    return dict(sorted(done))


@pytest.mark.parametrize(
    ("blocks", "deadly"),
    [(("abcde", "xyz"), "c"), (("abcde", "x"), "c"), (("x", "abcde"), "c"), (("abc", "xyz"), "ax")],
)
def test_of_two_blocks_in_work_the_right_image_is_left_out(blocks, deadly):
    board = FakeBoard()
    for _ in range(100):
        try:
            done = attempt_together(board, blocks, set(deadly))
            break
        except Died:
            pass
    assert done == {uri: "failed" if uri in deadly else "ok" for uri in sorted("".join(blocks))}
    assert all(name.startswith(("1 images", "cut 1 images")) for name in board.begun)


@pytest.mark.parametrize(
    ("images", "deadly", "deaths"), [(8, {3}, 4), (9, {8}, 4), (64, {0}, 5), (100_000, {99_999}, 8), (64, {0, 63}, 8)]
)
def test_a_large_block_is_cut_down_to_the_image_in_a_few_steps(images, deadly, deaths):
    board, uris = FakeBoard(), [str(i) for i in range(images)]
    done, died = do_block(board, uris, {str(i) for i in deadly})
    assert died == deaths
    assert [int(uri) for batch in done for uri, _ in batch] == list(range(images))
    assert {int(uri) for batch in done for uri, status in batch if status == "failed"} == deadly
    alone = sum(len(batch) == 1 for batch in done)
    assert alone <= 32 * len(deadly)           # the others still go in batches
    assert all(name.startswith("1 images") for name in board.begun if not name.startswith("cut 1 images"))


def test_each_attempt_cuts_where_the_last_one_did():
    board, uris, before = FakeBoard(), [str(i) for i in range(64)], set()
    for _ in range(10):
        portions, quarantine = [], Quarantine(board)
        for portion in quarantine.portions([TodoRow(uri) for uri in uris]):
            portions.append(int(portion.rows[0].uri))
            if not portion.left_out and "40" in {row.uri for row in portion.rows}:
                board.begin(f"{len(portion.rows)} images from {portion.rows[0].uri}")
                break
            with quarantine.doing(portion):
                pass
        else:
            break
        assert before <= set(portions)
        before = set(portions)
    else:
        raise AssertionError("for ever")


def test_after_one_death_the_block_is_decoded_as_before():
    board = FakeBoard()
    with pytest.raises(Died):
        attempt(board, "abc", {"b"})
    assert attempt(board, "abc", set()) == [[("a", "ok"), ("b", "ok")], [("c", "ok")]]
    assert not board.begun


@pytest.mark.parametrize(("lost", "whole"), [(0, True), (2, True), (LOST_NODES, True), (2 * LOST_NODES, False)])
def test_the_loss_of_nodes_is_not_the_fault_of_an_image_until_it_happens_again_and_again(lost, whole):
    board = FakeBoard()
    for i in range(lost):
        board.node = f"spot {i}"
        with pytest.raises(Died):
            attempt(board, "abc", {"b"})
        board.lost_nodes.add(board.node)
    board.node = "here"
    assert (len(attempt(board, "abc", set())) == 2) is whole


def test_what_is_cut_stays_cut_when_its_node_turns_out_to_be_lost():
    board = FakeBoard()
    for board.node in ("spot", "here"):
        with pytest.raises(Died):
            attempt(board, "abcd", {"a"})
    with pytest.raises(Died):
        attempt(board, "abcd", {"d"})
    board.lost_nodes = {"spot"}
    assert [len(batch) for batch in attempt(board, "abcd", set())] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("begun", "uris", "portions"),
    [({"3 images from a": 2, "1 images from b": 2}, "abc",
      [("a", True, False), ("b", True, True), ("c", True, False)]),
     ({}, "abc", [("a", False, False)]), ({}, "a", [("a", True, False)])],
)
def test_pieces_and_single_images_are_done_alone(begun, uris, portions):
    found = Quarantine(FakeBoard(**begun)).portions([TodoRow(uri) for uri in uris])
    assert [(p.rows[0].uri, p.alone, p.left_out) for p in found] == portions


def test_the_record_names_the_reason():
    record = left_out(ImageRecord("a", width=7, file_bytes=9, n_faces=2))
    assert record.status == "failed" and "died 2 times at this image" in record.error
    assert (record.width, record.file_bytes, record.n_faces) == (7, 9, None)


def test_pools_that_get_the_same_images_do_not_count_for_each_other():
    board = FakeBoard()
    first, second = Quarantine(board, "decode: "), Quarantine(board, "detect: ")
    rows = [TodoRow("a"), TodoRow("b")]
    with pytest.raises(Died):
        for portion in second.portions(rows):
            with second.doing(portion):
                for again in first.portions(rows):
                    with first.doing(again):
                        pass
                raise Died
    assert board.begun == {"detect: 2 images from a": ["here"]}
