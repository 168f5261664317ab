"""What the readers of the different kinds of containers have in common."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.batch import Status
from pipeline.errors import first_line


class ContainerError(Exception):
    """The file is damaged, or is no container of its kind."""


class MemberError(Exception):
    """One member cannot be read, for a reason that the user sees."""

    def __init__(self, reason: str, status: Status = Status.FETCH_FAILED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Member(NamedTuple):
    """A member of an archive. offset: where it is read, in bytes; None for a link, a device and the like."""

    name: str
    offset: int | None
    size: int         # bytes, as the archive claims


class Damage:
    """Where reading failed, so that what lies behind is not tried again for each member: it takes a pass each time.

    It is given up only after FAILED_TRIES: a store may have sent wrong bytes.
    """

    FAILED_TRIES = 3

    def __init__(self) -> None:
        self._place = 0
        self._tries = 0
        self._reason = ""

    def check(self, place: int) -> None:
        """Raises MemberError for a place that cannot be reached."""
        if self._tries >= self.FAILED_TRIES and place >= self._place:
            raise MemberError(self._reason)

    def note(self, place: int, error: Exception) -> None:
        """Reading failed on the way to this place."""
        self._place = min(place, self._place) if self._tries else place
        self._tries += 1
        self._reason = f"damaged in its container: {first_line(error)}"


class Elsewhere(NamedTuple):
    """The path or URI of an image that a container names but does not hold."""

    path: str


class MemberReader(Protocol):
    """Reads members of one container by their offsets. It is fastest in the order of the offsets.

    After an error it can go on.
    """

    def read(self, offset: int) -> bytes | Elsewhere:
        """A member. Raises MemberError, ContainerError, and the errors of the file below."""

    def close(self) -> None:
        """Close the file."""


def member_name(name: str) -> str:
    """A member's name; bytes that are not UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def too_large(max_bytes: int) -> MemberError:
    """The error of a member over the limit."""
    return MemberError(f"over the limit of {max_bytes} bytes", Status.TOO_LARGE)
