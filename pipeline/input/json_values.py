"""Read the values of a JSON text one after the other, so that a list of any length takes little memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

MAX_VALUE_CHARACTERS = 128 << 20      # of what is held at once: its objects take up to ten times the memory

_PIECE_CHARACTERS = 1 << 20
_CUT_CHARACTERS = 16                  # a number, a word or an escape that is cut off begins so near to the end
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class TooLong(ValueError):   # noqa: N818
    """A value is too long to be held in memory."""


class JsonText:
    """A text of one or more values. beginning: what is read already.

    Raises JSONDecodeError for what is not JSON, RecursionError for values inside one another without end, and
    TooLong for a value of more than MAX_VALUE_CHARACTERS.
    """

    def __init__(self, text: TextIO, beginning: str = "") -> None:
        self._text, self._buffer, self._at = text, beginning, 0

    def next_character(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()      # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def value(self) -> Any:
        """The next value, whole."""
        self.next_character()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._is_cut_off(error) or not self._read_more():
                    raise
                continue
            length = end - self._at
            if end <= len(self._buffer) - _CUT_CHARACTERS or not self._read_more():      # else a number may go on
                self._at += length
                return found

    def elements(self) -> Iterator[Any]:
        """The elements of the list that is the next value, each as it is read."""
        self._take("[")
        if self.next_character() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self.next_character() == "]":
                self._take("]")
                return
            self._take(",")

    def _take(self, character: str) -> None:
        if self.next_character() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self._buffer, self._at)
        self._at += 1

    def _is_cut_off(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - _CUT_CHARACTERS

    def _read_more(self) -> bool:
        """Read on, twice as far if the value is long; False at the end of the text."""
        held = len(self._buffer) - self._at
        if held > MAX_VALUE_CHARACTERS:
            raise TooLong(f"a value of more than {MAX_VALUE_CHARACTERS // 1_000_000} million characters")
        piece = self._text.read(max(_PIECE_CHARACTERS, held))
        self._buffer, self._at = self._buffer[self._at :] + piece, 0
        return bool(piece)
