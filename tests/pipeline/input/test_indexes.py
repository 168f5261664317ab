"""Indexes of archives kept beside the output."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.input import containers
from pipeline.input.containers import list_members
from pipeline.input.indexes import ENTRIES, FOLDER, KeptIndexes, forget_indexes
from pipeline.storage import open_storage
from pipeline.storage.uris import FROM_ENVIRONMENT
from tests.support.archives import tar

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
INDEX = pa.table({"name": ["a.jpg", "l.jpg"], "offset": [512, None], "size": [3, 0]}, schema=ENTRIES)


def container(uri="/s.tar", size=9, etag="e", mtime=NOON):
    return {"uri": uri, "container": None, "offset": None, "size": size, "etag": etag, "mtime": mtime}


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"))


@pytest.mark.parametrize("version", [{}, {"etag": None}, {"size": None, "mtime": None}])
def test_an_index_is_kept(storage, version):
    kept = KeptIndexes(storage)
    assert kept.read(container(**version)) is None
    kept.write(container(**version), INDEX)
    assert kept.read(container(**version)) == INDEX
    assert KeptIndexes(storage).read(container(**version, uri="/t.tar")) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {"etag": "f"}), ({}, {"etag": None}), ({"etag": None}, {"etag": None, "size": 10}),
     ({"etag": None}, {"etag": None, "mtime": NOON.replace(microsecond=1)})],
)  # fmt: skip
def test_an_index_of_another_version_does_not_count(storage, before, after):
    kept = KeptIndexes(storage)
    kept.write(container(**before), INDEX)
    assert kept.read(container(**after)) is None
    kept.write(container(**after), INDEX.slice(1))
    assert kept.read(container(**after)) == INDEX.slice(1)
    assert len(storage.list(FOLDER)) == 1                        # it took the place of the old one


@pytest.mark.parametrize("unknown", [{"etag": None, "size": None}, {"etag": None, "mtime": None}])
def test_without_a_known_version_no_index_is_kept(storage, unknown):
    KeptIndexes(storage).write(container(**unknown), INDEX)
    assert storage.list(FOLDER) == []


def test_an_index_with_an_erased_name_is_not_kept(storage):
    kept = KeptIndexes(storage, is_erased=lambda uri: uri == "/s.tar#a.jpg")
    kept.write(container(), INDEX)
    kept.write(container("/t.tar"), INDEX)
    assert kept.read(container()) is None and kept.read(container("/t.tar")) == INDEX


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"", lambda content: b"PAR1" * 9])
def test_a_damaged_index_is_made_again(storage, damage):
    kept = KeptIndexes(storage)
    kept.write(container(), INDEX)
    [file] = storage.list(FOLDER)
    storage.write(file.path, damage(storage.read(file.path)))
    assert kept.read(container()) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_storage_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    KeptIndexes(open_storage(str(tmp_path / "out"))).write(container(), INDEX)


def test_indexes_are_forgotten(storage):
    KeptIndexes(storage).write(container(), INDEX)
    forget_indexes(storage)
    assert KeptIndexes(storage).read(container()) is None
    forget_indexes(storage)


def test_an_archive_is_read_once_and_the_rules_are_applied_each_time(storage, tmp_path, monkeypatch):
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("a.jpg", b"123"), ("b.txt", b"4"), ("a.jpg", b"56")))
    opened = []
    open_file = containers.open_file
    monkeypatch.setattr(containers, "open_file", lambda uri, options: opened.append(uri) or open_file(uri, options))

    def found(skips):
        return list_members(container(str(path)), FROM_ENVIRONMENT, None, skips, KeptIndexes(storage))

    first = found(lambda name: None)
    again = found(lambda name: None)
    assert opened == [str(path)] and again == first
    assert found(lambda name: "chosen out" if name == "b.txt" else None).skipped["chosen out"] == 1
    assert len(opened) == 1


def test_the_index_of_a_damaged_archive_is_not_kept(storage, tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600))[:2300])
    kept = KeptIndexes(storage)
    assert list_members(container(str(path)), FROM_ENVIRONMENT, None, lambda name: None, kept).damage
    assert storage.list(FOLDER) == []
