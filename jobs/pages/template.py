"""The templates of the pages: what they put into a page is escaped, and looks alike on all of them."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline.text import printable

_CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(32)}     # Unicode's pictures of the control characters


def load_template(folder: Path, name: str) -> jinja2.Template:
    """The template of a page. What it puts into the page is escaped, and control characters are shown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]), autoescape=True, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )
    environment.globals |= {"points": _points}
    environment.filters |= {
        "name": posixpath.basename, "plural": plural, "thousands": "{:,}".format, "number": _number,
        "coordinate": "{:.{}f}".format, "jpeg": partial(_data_uri, "jpeg"), "webp": partial(_data_uri, "webp"),
    }
    return environment.get_template(name)


def visible(text: str) -> str:
    """Show control characters: a file's name may have any, even those that reverse the text after them."""
    return printable(text.translate(_CONTROL_PICTURES))


def plural(number: int, noun: str) -> str:
    """The number and the noun: "1 face", "2,000 faces"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(str(value))


def _points(points_xy: np.ndarray) -> Sequence[tuple[float, float]]:
    """The points that exist."""
    return [(float(x), float(y)) for x, y in points_xy if np.isfinite(x + y)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _data_uri(kind: str, content: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
