from __future__ import annotations

import pytest

from pipeline.input.containers import UNREAD_ARCHIVE
from pipeline.input.names import (
    EXCLUDED,
    HIDDEN,
    MARKER,
    NOT_INCLUDED,
    OTHER_EXTENSION,
    OUTPUT,
    SYSTEM,
    Glob,
)
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import PARQUET_FILE, Pattern, Rules, Selection

IMAGES = ParquetColumns("image")


@pytest.mark.parametrize(
    ("name", "rules", "reason"),
    [
        ("", Rules(), None),
        ("a.jpg", Rules(), None),
        ("a.tar", Rules(), None),
        ("a.parquet", Rules(), PARQUET_FILE),
        ("a.7z", Rules(), UNREAD_ARCHIVE),
        ("a.tar.gz", Rules(), None),
        ("a.doc", Rules(), OTHER_EXTENSION),
        ("a.parquet", Rules(parquet=IMAGES), None),
        (".a.tar", Rules(), HIDDEN),
        (".a.txt", Rules(all_files=True), None),
    ],
)
def test_skips(name, rules, reason):
    assert Selection(rules, "/p").skips(name) == reason


@pytest.mark.parametrize(
    ("pattern", "name", "rules", "reason"),
    [
        ("*", "a.txt", Rules(), OTHER_EXTENSION),
        ("*", "a.txt", Rules(all_files=True), None),
        ("*.txt", "a.txt", Rules(), None),
        ("*", "a.parquet", Rules(), PARQUET_FILE),
        ("*", "a.7z", Rules(), UNREAD_ARCHIVE),
        ("*", "a.parquet", Rules(parquet=IMAGES), None),
    ],
)
def test_skips_match(pattern, name, rules, reason):
    assert Selection(rules, "/p", Glob(pattern, hidden=False)).skips(name) == reason


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
    skips = Rules("s3://b/p/out").key_rule("s3://b", "p/", Glob("p/**/a*", hidden=False, literal="p/"))
    assert skips("p/x/a.jpg", 1) is None
    assert skips("p/x/a.txt", 1) == OTHER_EXTENSION
    assert skips("p/out/a.jpg", 1) == OUTPUT
    assert skips("p/x/a/", 0) == MARKER


def test_a_hidden_folder_given_as_input_is_listed():
    assert Rules().key_rule("s3://b", ".cache/")(".cache/a.jpg", 1) is None


# --- names that systems make


@pytest.mark.parametrize(
    ("top", "path", "reason"),
    [
        ("/p", "a.jpg", None),
        ("/p", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", SYSTEM),
        ("/p", "x/#recycle/a.jpg", SYSTEM),
        ("/p", "IMG.JPG_original", SYSTEM),
        ("/p", "Thumbs.db", SYSTEM),
        ("/p", ".Trash-1000/a.jpg", HIDDEN),
        ("/p/@eaDir", "a.jpg", None),                                  # INPUT itself lies in such a folder
        ("s3://b/#recycle/x", "a.jpg", None),
        ("/p", "L.photoslibrary/resources/derivatives/a.jpeg", SYSTEM),
        ("/p", "L.photoslibrary/originals/0/a.jpeg", None),
        ("/p/L.photoslibrary", "resources/derivatives/a.jpeg", SYSTEM),
        ("/p/L.photoslibrary/", "originals/a.jpeg", None),
        ("/p/L.photoslibrary/resources", "derivatives/a.jpeg", None),
    ],
)
def test_names_made_by_systems(top, path, reason):
    assert Selection(Rules(), top).skips(path) == reason
    assert Selection(Rules(all_files=True), top).skips(path) is None


@pytest.mark.parametrize(
    ("pattern", "literal", "path", "reason"),
    [
        ("/p/**", "/p", "a.jpg", None),
        ("/p/**/*.jpg", "/p", "x/@eaDir/a.jpg", SYSTEM),
        ("/p/*/@eaDir/*.jpg", "/p", "x/@eaDir/a.jpg", None),           # named by the pattern
        ("/p/*_original", "/p", "a.jpg_original", SYSTEM),
        ("/p/*.jpg_original", "/p", "a.jpg_original", None),
    ],
)
def test_a_glob_takes_names_made_by_systems_if_it_names_them(pattern, literal, path, reason):
    glob = Glob(pattern, hidden=False, literal=literal)
    assert Selection(Rules(), literal, glob).skips(path) == reason


# --- --exclude and --include


@pytest.mark.parametrize(
    ("exclude", "path", "reason"),
    [
        ("", "a.jpg", None),
        ("*.png", "x/a.png", EXCLUDED),
        ("*.png", "x/a.jpg", None),
        ("x", "x/y/a.jpg", EXCLUDED),
        ("x/", "x/y/a.jpg", EXCLUDED),
        ("y", "x/y/a.jpg", EXCLUDED),
        ("x/y", "x/y/z/a.jpg", EXCLUDED),
        ("/x/y", "x/y/z/a.jpg", EXCLUDED),
        ("y/z", "x/y/z/a.jpg", None),                  # with a "/" it begins at INPUT
        ("**/z", "x/y/z/a.jpg", EXCLUDED),
        ("x/*.jpg", "x/y/a.jpg", None),
        ("x/**/*.jpg", "x/y/a.jpg", EXCLUDED),
        ("/p/x", "x/a.jpg", EXCLUDED),                 # the whole path
        ("/q/x", "x/a.jpg", None),
        ("Trip [1]", "Trip [1]/a.jpg", EXCLUDED),      # exactly this name
        ("Trip [1]", "Trip 1/a.jpg", EXCLUDED),
        ("caf\u00e9", "cafe\u0301/a.jpg", EXCLUDED),
    ],
)
def test_exclude(exclude, path, reason):
    selection = Selection(Rules(exclude=(exclude,)), "/p")
    assert selection.skips(path) == selection.skips_entry(path) == selection.skips_member("s.tar", path) == reason


@pytest.mark.parametrize(
    ("include", "path", "reason"),
    [
        (("*.jpg",), "x/a.jpg", None),
        (("*.jpg",), "x/a.png", NOT_INCLUDED),
        (("*.jpg", "*.png"), "x/a.png", None),
        (("*.dat",), "a.dat", None),                    # it names the extension
        (("x",), "x/a.dat", OTHER_EXTENSION),
        (("x",), "x/y/a.jpg", None),
        (("x/*",), "x/y/a.jpg", None),                  # matches the folder x/y
        (("*",), "@eaDir/a.jpg", SYSTEM),
        (("*",), ".x/a.jpg", HIDDEN),
        (("@eaDir",), "@eaDir/a.jpg", None),            # named by the pattern
        ((".x/*.jpg",), ".x/a.jpg", None),
    ],
)
def test_include(include, path, reason):
    selection = Selection(Rules(include=include), "/p")
    assert selection.skips(path) == selection.skips_member("s.tar", path) == reason


def test_exclude_wins():
    selection = Selection(Rules(include=("*.jpg",), exclude=("x",)), "/p")
    assert selection.skips("x/a.jpg") == EXCLUDED and selection.skips("a.jpg") is None


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(include=("*.jpg",)), None),
        (Rules(include=("x/s.tar",)), None),
        (Rules(include=("t.tar",)), NOT_INCLUDED),
        (Rules(exclude=("s.tar",)), EXCLUDED),
        (Rules(exclude=("x/s.tar/y",)), EXCLUDED),
        (Rules(exclude=("y/*.jpg",)), EXCLUDED),        # from the start of the container
    ],
)
def test_a_container_is_a_folder_of_its_members(rules, reason):
    assert Selection(rules, "/p").skips_member("x/s.tar", "y/1.jpg") == reason


def test_a_container_is_listed_for_its_members():
    selection = Selection(Rules(include=("*.jpg",)), "/p")
    assert selection.skips("x/s.tar") is None and selection.skips_entry("x/s.tar") is None


def test_a_pattern_matches_the_name_itself_or_a_folder_above():
    assert Pattern("*.jpg", "/p").matches_within("a.jpg/x") and not Pattern("*.jpg", "/p").matches("a.jpg/x")
