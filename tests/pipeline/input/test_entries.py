from __future__ import annotations

import pytest

from pipeline.input.entries import local_name, looks_like_an_image, name_checker, people_name, valid_name
from pipeline.input.names import InputError

THERE = {" a.jpg", "#1.jpg", "b\\c.jpg", "d/e.jpg", "f.jpg", "C:\\g.jpg", "Zo\u00eb.jpg"}


def exists(name):
    return name in THERE


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("", ""), ("x.jpg", "x.jpg"), (" a.jpg", " a.jpg"), (" f.jpg ", "f.jpg"), (" none.jpg ", " none.jpg "),
        (" s3://b/k ", "s3://b/k"), ("# a", None), ("  # a", None), ("#1.jpg", "#1.jpg"), ("a #1.jpg", "a #1.jpg"),
    ],
)  # fmt: skip
def test_spaces_and_comments(entry, name):
    assert people_name(entry, exists) == name


@pytest.mark.parametrize(
    ("entry", "name"),
    [("", ""), ("b\\c.jpg", "b\\c.jpg"), ("d\\e.jpg", "d/e.jpg"), ("x\\y.jpg", "x\\y.jpg"), ("C:\\g.jpg", "C:\\g.jpg")],
)
def test_backslashes(entry, name):
    assert local_name(entry, exists) == name


@pytest.mark.parametrize("entry", ["C:\\x.jpg", "d:/x.jpg", "\\\\server\\share\\x.jpg"])
def test_a_drive_of_windows_is_refused(entry):
    with pytest.raises(InputError, match="is a path of Windows"):
        local_name(entry, exists)


@pytest.mark.parametrize(
    ("name", "folder", "valid"),
    [
        ("", "/p", ""),
        ("Zo\u00eb.jpg", "/p", "Zo\u00eb.jpg"),
        ("Zo\udceb.jpg", "/p", "Zo\u00eb.jpg"),
        ("x\udceb.jpg", "/p", "file:///p/x%EB.jpg"),
        ("x\udceb.jpg", "s3://b", "x\u00eb.jpg"),
        ("s3://b/x\udceb.jpg", "/p", "s3://b/x\u00eb.jpg"),
    ],
)
def test_names_that_are_not_utf_8(name, folder, valid):
    assert valid_name(name, folder, exists) == valid


@pytest.mark.parametrize(
    ("name", "there"), [("a.jpg", True), ("none.jpg", False), ("s3://b/a.jpg", False), ("a\0.jpg", False)]
)
def test_name_checker(tmp_path, name, there):
    (tmp_path / "a.jpg").touch()
    assert name_checker(str(tmp_path))(name) is there and name_checker(str(tmp_path))(f"{tmp_path}/a.jpg")
    assert not name_checker("s3://b/p")(name)


@pytest.mark.parametrize(("entry", "does"), [("", False), ("Ann", False), ("a.JPG", True), ("s3://b/k", True)])
def test_looks_like_an_image(entry, does):
    assert looks_like_an_image(entry) is does
