import hashlib

import pyarrow as pa
import pytest

from pipeline.errors import OutputError
from pipeline.output.erased import ERASED_PATH, Erased, read_erased, write_erased
from pipeline.storage import open_storage


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"))


def strings(*values):
    return pa.array(values, pa.string())


def test_a_new_output_has_an_empty_list_with_a_new_salt(storage):
    first, second = read_erased(storage), read_erased(storage)
    assert len(first.hashes) == 0 and first.hashes.type == pa.string()
    assert first.salt != second.salt and len(first.salt) == 32
    assert storage.list("") == []


@pytest.mark.parametrize("uris", [(), ("a",), ("b", "ä\n'", "a")])
def test_the_list_is_read_back_and_holds_only_hashes(storage, uris):
    listed = Erased("5a17", strings()).adding(strings(*uris))
    write_erased(storage, listed)
    again = read_erased(storage)
    assert again.salt == "5a17"
    assert again.hashes.to_pylist() == sorted(hashlib.sha256(("5a17" + uri).encode()).hexdigest() for uri in uris)


def test_hashes_are_distinct_and_can_be_removed():
    listed = Erased("5a17", strings()).adding(strings("a", "b")).adding(strings("b", "c"))
    assert len(listed.hashes) == 3
    assert listed.without(strings("b", "unknown")) == Erased("5a17", strings()).adding(strings("c", "a"))
    assert listed.without(strings()) == listed


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet"])
def test_a_damaged_list_is_refused(storage, content):
    storage.write(ERASED_PATH, content)
    with pytest.raises(OutputError, match="damaged"):
        read_erased(storage)


def test_a_list_without_its_salt_is_refused(storage):
    from pipeline.output.ledger import to_parquet

    storage.write(ERASED_PATH, to_parquet(pa.table({"hash": strings("x")})))
    with pytest.raises(OutputError, match="damaged"):
        read_erased(storage)
