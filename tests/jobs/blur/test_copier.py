"""Copies that cannot be made."""

import hashlib

import pytest

from jobs.blur.choice import EVERYONE
from jobs.blur.copier import Copier
from jobs.blur.faces import NO_FACES
from jobs.blur.hide import How
from jobs.blur.work import Image
from pipeline.batch import Fetched, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.storage import open_storage
from tests.jobs.blur.test_main import jpeg
from tests.support.failing_storage import StorageWrapper


class Failing(StorageWrapper):
    """Every write fails."""

    def __init__(self, storage, error):
        super().__init__(storage)
        self._error = error

    def write(self, *_):
        raise self._error


def copy(folder, error):
    copier = Copier(Failing(open_storage(str(folder)), error), "/p/", How.BLUR, EVERYONE, 10**8, None)
    record = {"sha256": hashlib.sha256(jpeg()).hexdigest(), "n_faces": 0, "faces_truncated": False}
    return copier(Image(TodoRow("/p/a.jpg"), record, "part"), NO_FACES, Fetched(jpeg()))


@pytest.mark.parametrize(("error", "reason"), [
    (MemoryError(), "it needs more memory than there is"), (OSError(5, "bad sector"), "cannot be written: bad sector"),
])
def test_a_fault_of_one_image_is_counted_and_the_next_run_tries_again(tmp_path, error, reason):
    row = copy(tmp_path, error)
    assert (row["outcome"], row["reason"]) == ("failed", reason)


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(EnvironmentFault):
        copy(tmp_path, OSError(28, "No space left on device"))
