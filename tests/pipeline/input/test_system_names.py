from __future__ import annotations

import pytest

from pipeline.input.system_names import is_system_name


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "@EADIR", "@__thumb", "#recycle", "@Recycle", "$RECYCLE.BIN",
     "System Volume Information", "lost+found", "Thumbs.db", "thumbs.db:encryptable", "desktop.ini", "__MACOSX",
     "Icon\r", "Catalog Previews.lrdata", "Catalog Smart Previews.lrdata",
     "IMG_1.JPG_original", "a.b.cr2_original", "IMG_1.jpg_exiftool_tmp", "a.jpg~", "a.jpg@SynoEAStream",
     "files_trashbin", "appdata_ocabc123", "Backup.sparsebundle", "_SUCCESS", "p_$folder$",
     "_vti_cnf", "FOUND.000", "AlbumArt_{B5020207}_Large.jpg", "@GMT-2024.01.01-00.00.00", "[Originals]"],
)
def test_names_that_systems_make(name):
    assert is_system_name(name) and is_system_name(name, "x", is_folder=True)


@pytest.mark.parametrize(
    "name",
    ["", "a.jpg", "originals", "thumbs", "Recycling 2019", "avatar_original", "original.jpg", "a_original.jpg",
     "@home", "#1.jpg", "$5.jpg", "Mobile Downloads.lrdata", "resources", "cache", "[2019]", "~a.jpg", "_a.jpg"],
)
def test_names_that_people_give(name):
    assert not is_system_name(name) and not is_system_name(name, "x", is_folder=True)


@pytest.mark.parametrize(
    ("parent", "name", "made"),
    [
        ("", "resources", False),
        ("My.photoslibrary", "resources", True),
        ("My.photoslibrary", "database", True),
        ("My.photoslibrary", "originals", False),
        ("My.photoslibrary", "Masters", False),
        ("iPhoto Library", "Thumbnails", True),
        ("Old.aplibrary", "Previews", True),
        ("C1.cocatalog", "Cache", True),
        ("CaptureOne", "Cache", True),
        ("CaptureOne", "2019", False),
        ("Android", "data", True),
    ],
)
def test_folders_that_are_of_a_system_by_where_they_are(parent, name, made):
    assert is_system_name(name, parent, is_folder=True) is made
    assert not is_system_name(name, parent)
