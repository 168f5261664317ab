from __future__ import annotations

import pytest

from pipeline.input.names import (
    Glob,
    composed,
    extension,
    is_hidden,
    literal_beginning,
    may_be_image,
    spellings,
    uri_extension,
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", ""), ("photo", ""), ("a/photo.JPG", "jpg"), ("a.b/photo", ""), ("x.tar.gz", "gz"), ("dot.", ""),
        (".hidden", ""), ("2024.03", ""), ("st. mary", ""), ("a.jp2", "jp2"), ("dir.jpg/", ""),
    ],
)  # fmt: skip
def test_extension(name, found):
    assert extension(name) == found


@pytest.mark.parametrize(
    ("name", "image"), [("", True), ("a", True), ("a.jPeG", True), ("a.heic", True), ("a.txt", False), ("a.cr2", False)]
)
def test_may_be_image(name, image):
    assert may_be_image(name) is image


@pytest.mark.parametrize(("name", "hidden"), [("", False), (".", False), ("..", False), (".a", True), ("a.b", False)])
def test_is_hidden(name, hidden):
    assert is_hidden(name) is hidden


@pytest.mark.parametrize(
    ("uri", "found"),
    [("", ""), ("/a?x.jpg", "jpg"), ("s3://b/a.tar?x", ""), ("https://h/a.CSV?x=b.jpg", "csv"), ("http://h/a", "")],
)
def test_uri_extension(uri, found):
    assert uri_extension(uri) == found


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("", "", True),
        ("a", "a", True),
        ("a", "b", False),
        ("/p/*.jpg", "/p/a.jpg", True),
        ("/p/*.jpg", "/p/x/a.jpg", False),
        ("/p/*.jpg", "/p/.a.jpg", False),
        ("/p/.*.jpg", "/p/.a.jpg", True),
        ("/p/?.jpg", "/p/é.jpg", True),
        ("/p/?.jpg", "/p/ab.jpg", False),
        ("/p/[ab].jpg", "/p/b.jpg", True),
        ("/p/[!ab].jpg", "/p/b.jpg", False),
        ("/p/[*].jpg", "/p/*.jpg", True),
        ("/p/[*].jpg", "/p/x.jpg", False),
        ("/p/[", "/p/[", True),
        ("/p/**/*.jpg", "/p/a.jpg", True),
        ("/p/**/*.jpg", "/p/x/y/a.jpg", True),
        ("/p/**/*.jpg", "/p/.x/a.jpg", False),
        ("/p/**/*.jpg", "/q/a.jpg", False),
        ("/p/**", "/p", False),
        ("/p/**", "/p/x/a", True),
        ("/p/**", "/p", False),
        ("/p/x*/**", "/p/x.jpg", False),
        ("/p/**", "/p/x/.a", False),
        ("/p/**/x/**/*.jpg", "/p/1/x/2/a.jpg", True),
        ("/p/**/x/**/*.jpg", "/p/1/y/2/a.jpg", False),
        ("/p/x**.jpg", "/p/x1.jpg", True),
        ("/p/x**.jpg", "/p/x/1.jpg", False),
        ("p/*", "p/a\nb", True),
        ("p/*/b", "p//b", True),
        ("p/**/b", "p/../b", True),
    ],
)
def test_glob_matches(pattern, path, fits):
    assert Glob(pattern, hidden=False).matches(path) is fits


@pytest.mark.parametrize("path", ["/p/.a.jpg", "/p/.x/a.jpg"])
def test_glob_with_hidden_names(path):
    assert Glob("/p/**/*.jpg", hidden=True).matches(path)
    assert not Glob("/p/**/*.jpg", hidden=False).matches(path)


@pytest.mark.parametrize(
    ("pattern", "folder", "may"),
    [
        ("/p/*.jpg", "/p", True),
        ("/p/*.jpg", "/p/x", False),
        ("/p/x*/*.jpg", "/p/x1", True),
        ("/p/x*/*.jpg", "/p/y", False),
        ("/p/x*/*.jpg", "/p/x1/z", False),
        ("/p/**", "/p/a/b/c", True),
        ("/p/**", "/p/a/.b", False),
        ("/p/x/**/y/*.jpg", "/p/x/1/2", True),
        ("/p/x/**/y/*.jpg", "/p/z", False),
    ],
)
def test_may_match_below(pattern, folder, may):
    assert Glob(pattern, hidden=False).may_match_below(folder) is may


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("", False), ("/p/*", False), ("/p/*.*", False), ("/p/*.dat", True), ("/p/*.jp*g", True), ("/p.x/**", False)],
)
def test_glob_that_names_an_extension(pattern, names):
    assert Glob(pattern, hidden=False).names_extension is names


@pytest.mark.parametrize(
    ("pattern", "beginning"), [("", None), ("/a/b", None), ("*", ""), ("/a/b*", "/a/b"), ("a[1]?", "a"), ("a?", "a")]
)
def test_literal_beginning(pattern, beginning):
    assert literal_beginning(pattern) == beginning


@pytest.mark.parametrize(
    ("literal", "pattern", "path", "beginning", "fits"),
    [
        ("", "a[1]/*", "a1/b", "a", True),
        ("a[1]", "a[1]/*", "a[1]/b", "a[1]/", True),
        ("a[1]/", "a[1]/*", "a1/b", "a[1]/", False),
        ("/p/**", "/p/**/b*", "/p/**/bc", "/p/**/b", True),
        ("/p/**", "/p/**/b*", "/p/x/bc", "/p/**/b", False),
        ("", "cafe\u0301*", "caf\u00e9.jpg", "caf", True),
    ],
)
def test_glob_with_a_literal_folder(literal, pattern, path, beginning, fits):
    glob = Glob(pattern, hidden=False, literal=literal)
    assert glob.matches(path) is fits and glob.beginning == beginning


@pytest.mark.parametrize(
    ("name", "all_spellings"),
    [("", [""]), ("a", ["a"]), ("\u00e9", ["\u00e9", "e\u0301"]), ("e\u0301", ["e\u0301", "\u00e9"]),
     ("\u732b", ["\u732b"])],
)
def test_unicode_forms(name, all_spellings):
    assert spellings(name) == all_spellings and {composed(each) for each in all_spellings} == {composed(name)}
