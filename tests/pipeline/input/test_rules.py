from __future__ import annotations

import pytest

from pipeline.input.containers import ParquetColumns
from pipeline.input.names import HIDDEN, MARKER, OTHER_EXTENSION, OUTPUT, Glob
from pipeline.input.rules import Rules

IMAGES = ParquetColumns("image")


@pytest.mark.parametrize(
    ("name", "rules", "reason"),
    [
        ("", Rules(), None),
        ("a.jpg", Rules(), None),
        ("a.tar", Rules(), None),
        ("a.parquet", Rules(), OTHER_EXTENSION),
        ("a.parquet", Rules(parquet=IMAGES), None),
        (".a.tar", Rules(), HIDDEN),
        (".a.txt", Rules(all_files=True), None),
    ],
)
def test_skips(name, rules, reason):
    assert rules.skips(name) == reason


@pytest.mark.parametrize(
    ("pattern", "name", "rules", "reason"),
    [
        ("*", "a.txt", Rules(), OTHER_EXTENSION),
        ("*", "a.txt", Rules(all_files=True), None),
        ("*.txt", "a.txt", Rules(), None),
        ("*", "a.parquet", Rules(), OTHER_EXTENSION),
        ("*", "a.parquet", Rules(parquet=IMAGES), None),
    ],
)
def test_skips_match(pattern, name, rules, reason):
    assert rules.skips_match(Glob(pattern, hidden=False), name) == reason


@pytest.mark.parametrize(
    ("key", "size", "all_files", "reason"),
    [
        ("p/a.jpg", 1, False, None),
        ("p/sub/noext", 1, False, None),
        ("p/", 0, False, MARKER),
        ("p/sub/", 0, True, MARKER),
        ("p/sub/", None, True, MARKER),
        ("p/sub/", 5, False, None),
        ("p/a.txt", 1, False, OTHER_EXTENSION),
        ("p/a.txt", 1, True, None),
        ("p/.git/a.jpg", 1, False, HIDDEN),
        ("p/out.parquet/part-1.parquet", 1, True, OUTPUT),
        ("p/out.parquet2/a", 1, True, None),
    ],
)
def test_key_rule(key, size, all_files, reason):
    assert Rules("s3://b/p/out.parquet", all_files).key_rule("s3://b", "p/")(key, size) == reason


@pytest.mark.parametrize(
    ("output", "folder", "reason"),
    [
        ("", "p/", None),
        ("s3://b", "p/", None),
        ("s3://other/p/out", "p/", None),
        ("s3://b/p/out", "p/", OUTPUT),
        ("s3://b/p/out", "", OUTPUT),
        ("s3://b/p/out", "p/out/sub/", None),      # INPUT is inside OUTPUT
    ],
)
def test_the_output_is_skipped_where_it_is_inside_the_input(output, folder, reason):
    assert Rules(output).key_rule("s3://b", folder)("p/out/sub/a.jpg", 1) == reason


def test_key_rule_of_a_glob():
    skips = Rules("s3://b/p/out").key_rule("s3://b", "p/*/", Glob("p/**/a*", hidden=False))
    assert skips("p/x/a.jpg", 1) is None
    assert skips("p/x/a.txt", 1) == OTHER_EXTENSION
    assert skips("p/out/a.jpg", 1) == OUTPUT
    assert skips("p/x/a/", 0) == MARKER


def test_a_hidden_folder_given_as_input_is_listed():
    assert Rules().key_rule("s3://b", ".cache/")(".cache/a.jpg", 1) is None
