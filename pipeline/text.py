"""Text for the terminal."""

from __future__ import annotations

import unicodedata

# Unicode categories: control characters, marks that change the writing direction, surrogates, line ends.
_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""The text with control characters (`\x1b[2J`, a newline) as escapes: a name must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROLS else c for c in text
    )
