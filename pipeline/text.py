"""Text as it is shown to people."""

from __future__ import annotations

import unicodedata

# Control characters, marks that change the direction of writing, line ends.
_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""The text as it may be shown on a terminal: control characters of a name, `\x1b[2J` or a newline, as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROLS else c for c in text
    )
