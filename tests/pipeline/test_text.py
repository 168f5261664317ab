from __future__ import annotations

import pytest

from pipeline.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("größe 北京\u3000🙂 \\n.jpg", "größe 北京\u3000🙂 \\n.jpg"),
        ("\x1b[2J\a\r\n\t\x7f", r"\x1b[2J\x07\r\n\t\x7f"),
        ("gnp.\u202ejpg \x9b2J caf\udce9", r"gnp.\u202ejpg \x9b2J caf\udce9"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown
