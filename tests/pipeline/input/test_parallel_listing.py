from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.input.manifest_folder import merged
from pipeline.input.names import InputError
from pipeline.input.parallel_listing import _Range, _Ranges, between, gather, list_in_parallel
from pipeline.input.rows import FoundObject

WHOLE = ("", None)
T0 = datetime(2026, 1, 2, tzinfo=UTC)
ODD_KEYS = [
    "p/ lead", "p//", "p//b.jpg", "p/./z", "p/../b", "p/a b%20+#é?.jpg", 'p/q"uo\'te', "p/tab\t", "p/\x01", "p/\x7f",
    "p/\ud7ff", "p/\ue000", "p/😀", "p/\U0010ffff", "p/\U0010ffff\U0010ffff/x", "p/a", "p/a/", "p/a/b", "p/A",
]  # fmt: skip


class Server:
    """Lists keys in order, in pages, as S3 does. Counts the requests."""

    def __init__(self, keys, page_keys=3, seconds=0.0):
        self.keys = sorted(keys)
        self.page_keys = page_keys
        self.seconds = seconds
        self.asked = Counter()
        self.by_thread = Counter()

    def __call__(self, after, page_size):
        at = bisect_right(self.keys, after)
        size = 1 if page_size == 1 else self.page_keys
        while True:
            self.asked["probe" if page_size == 1 else "page"] += 1
            time.sleep(self.seconds)
            page = [FoundObject(key, 7, None, T0) for key in self.keys[at : at + size]]
            self.by_thread[threading.get_ident()] += page_size > 1
            yield page
            at += size
            if at >= len(self.keys):
                return


def list_all(server, prefix="", spans=(WHOLE,), threads=4):
    """The keys found. Checks that the pieces cover the spans and hold only keys of theirs."""
    pieces = list(list_in_parallel(server, prefix, spans, threads))
    assert merged(span for span, _ in pieces) == merged(spans)
    for (after, until), found in pieces:
        assert all(after < key and (until is None or key <= until) for key, *_ in found)
    return [key for _, found in pieces for key, *_ in found]


# --- between


@pytest.mark.parametrize(
    ("low", "high", "middle"),
    [
        ("", "", None),
        ("a", "a", None),
        ("b", "a", None),
        ("", None, "O"),                           # (0x1f + 0x80) // 2
        ("0", None, "X"),
        ("a", "c", "b"),
        ("a", "b", "aO"),                          # adjacent: a string that starts with "a"
        ("a", "bx", "b"),                          # adjacent: the upper one without its end
        ("az", "b", "a}"),
        ("photos/2024/x", "photos/2026/y", "photos/2025"),
        ("a", "a\0", None),                        # there is nothing between
        ("a", "a\0\0", "a\0"),
        ("a", "a\x02", None),                      # there is nothing between that XML can hold
        ("a\x01", "a\x03", "a\x01O"),
        ("\ufffd", "\U00010002", "\U00010000"),
        ("\ufffc", "\U00010000", "\ufffd"),
        ("~", None, "\x7f"),
        ("\x7f", None, "\U0008803f"),
        ("a\U0010ffff", "b", "a\U0010ffffO"),
        ("\ud7fe", "\ue000", "\ud7ff"),            # surrogates are between, which are no characters
        ("\ud7ff", "\ue002", "\ue000"),
        ("\ud7ff", "\ue000", "\ud7ffO"),
    ],
)
def test_between(low, high, middle):
    assert between(low, high) == middle


NOT_IN_XML = {*map(chr, range(0x20)), "\ufffe", "\uffff"}


@given(st.text(max_size=6), st.text(max_size=6) | st.none())
@example("\ufffd", "\U00010000")
@example("", "\U0001ffff")
def test_the_result_is_between_and_valid_in_xml(low, high):
    middle = between(low, high)
    if middle is None:
        assert high is not None and (low >= high or (high[:-1] == low and high[-1] <= " "))
    else:
        assert low < middle and (high is None or middle < high)
        middle.encode()
        assert not set(middle) & NOT_IN_XML - set(low) - set(high or "")


# --- in parallel


@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("", []),
        ("p/", []),
        ("p/", ["p/"]),
        ("", ["a"]),
        ("p/", ODD_KEYS),
        ("", [f"{i:08x}" for i in range(0, 1 << 32, 1 << 24)]),                      # hashed names in one folder
        ("p/", [f"p/{i // 10}/{i}.jpg" for i in range(300)]),                        # small folders
        ("p/", [f"p/{'long/' * 30}{i:05}" for i in range(300)]),                     # names that begin alike
        ("p/", ["p/a", *(f"p/b{i:04}" for i in range(300)), "p/c"]),                 # most in one part of the alphabet
        ("p/", [f"p/{chr(0x4E00 + i)}" for i in range(300)]),
        ("", ["a" * i for i in range(1, 200)]),
        ("k" * 300, ["k" * 300 + str(i) for i in range(100)]),                       # over _MAX_CHARACTERS
    ],
)  # fmt: skip
def test_every_key_is_listed_exactly_once(prefix, keys, threads):
    server = Server(keys, seconds=0.0005 if threads > 1 else 0)
    assert sorted(list_all(server, prefix, threads=threads)) == sorted(keys)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sets(st.text("ab/", max_size=8) | st.text(max_size=4), max_size=60).map(lambda keys: keys - {""}),
    st.sampled_from(["", "a", "p/"]),
    st.integers(1, 4),
    st.sampled_from([1, 3, 16]),
)
def test_any_keys_are_listed_exactly_once(keys, prefix, page_keys, threads):
    keys = {prefix + key for key in keys}
    assert sorted(list_all(Server(keys, page_keys), prefix, threads=threads)) == sorted(keys)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], ""),
        ([("", "c")], "abc"),
        ([("c", None)], "defgh"),
        ([("b", "c")], "c"),
        ([("b", "bb")], ""),
        ([("", "b"), ("d", "f"), ("g", None)], "abefh"),
        ([("h", None)], ""),
        ([("zz", None)], ""),
    ],
)
def test_only_the_spans_are_listed(spans, expected):
    assert sorted(list_all(Server("abcdefgh"), spans=spans)) == list(expected)


def test_threads_share_the_work():
    keys = [f"p/2026/{i:05}.jpg" for i in range(3000)]
    server = Server(keys, page_keys=10, seconds=0.003)
    assert sorted(list_all(server, "p/", threads=16)) == keys
    assert max(server.by_thread.values()) < 0.4 * server.asked["page"]     # one thread alone would list all
    assert 300 <= server.asked["page"] < 450 and server.asked["probe"] < 600


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_small_bucket_is_listed_by_one_thread(count):
    server = Server([f"{i}" for i in range(count)], page_keys=3, seconds=0.002)
    list_all(server, threads=16)
    assert server.asked == {"page": 1}


def test_each_failed_halving_doubles_the_wait_for_the_next():
    server = Server([])
    ranges = _Ranges(server, "", [WHOLE])
    whole = ranges.take()
    for patience in (4, 8, 16):
        assert ranges._halve(whole) is None and whole.patience == patience
    assert whole.until is None


def test_a_range_that_went_past_the_middle_is_not_halved():
    ranges = _Ranges(Server(["b", "y", "z"]), "", [WHOLE])
    whole = ranges.take()
    ranges._is_something_above = lambda key, until: ranges.advance(whole, ["z"]) > 0   # it is listed in the meantime
    assert ranges._halve(whole) is None and (whole.position, whole.until) == ("z", None)


def test_the_upper_half_begins_after_the_middle():
    ranges = _Ranges(Server(["b", "y"]), "", [("a", "z")])
    whole = ranges.take()
    half = ranges._halve(whole)
    assert (whole.position, whole.until, half.position, half.until) == ("a", "m", "m", "z")
    assert ranges.advance(whole, ["b", "m", "n"]) == 2 and whole.position == "m"


def test_a_later_halving_needs_fewer_probes():
    server = Server([f"long/beginning/{i:03}" for i in range(50)])
    ranges = _Ranges(server, "long/", [WHOLE])
    whole = ranges.take()
    ranges.advance(whole, ["long/beginning/000"])
    half = ranges._halve(whole)
    first = server.asked.pop("probe")
    ranges.advance(half, ["long/beginning/030"])
    assert isinstance(ranges._halve(half), _Range) and server.asked["probe"] < first
    assert half.until < "long/beginning/049"


@pytest.mark.parametrize(
    "pages",
    [[["b", "a"]], [["a", "a"]], [["a", "b"], ["b", "c"]], [["b"], ["a"]], [["a"], [], ["a"]]],
    ids=str,
)
def test_a_server_without_order_is_refused(pages):
    def serve(after, page_size):
        yield from ([FoundObject(key, 1, None, T0) for key in page] for page in pages)

    with pytest.raises(InputError, match="does not list keys in their order"):
        list(list_in_parallel(serve, "", [WHOLE], 2))


def test_an_empty_page_does_not_end_the_listing():
    def serve(after, page_size):
        yield from ([FoundObject(key, 1, None, T0)] if key else [] for key in ["", "a", "", "b", ""])

    assert list_all(serve, threads=1) == ["a", "b"]


# --- gather


def test_gather_of_nothing():
    assert list(gather(lambda put: None, 3)) == []


def test_gather_yields_what_all_threads_put():
    assert sorted(gather(lambda put: [put(i) for i in range(50)], 3)) == sorted(list(range(50)) * 3)


def test_the_first_error_ends_all_threads():
    alive = threading.Semaphore(0)

    def work(put):
        try:
            if threading.current_thread() is first[0]:
                raise OSError("broken")
            while True:
                put(1)
        finally:
            alive.release()

    first = []

    def named(put):
        first.append(threading.current_thread())
        work(put)

    with pytest.raises(OSError, match="broken"):
        list(gather(named, 3))
    assert all(alive.acquire(timeout=60) for _ in range(3))


def test_threads_end_when_the_caller_stops():
    ended = threading.Event()

    def work(put):
        try:
            while True:
                put(1)
        finally:
            ended.set()

    results = gather(work, 1)
    assert next(results) == 1
    results.close()
    assert ended.wait(60)
