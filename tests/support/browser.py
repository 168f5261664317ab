"""A real browser, and names that would run as scripts if a page did not show them as text."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

PWN = "document.title='pwned'"
HOSTILE = (
    f"<img src=x onerror={PWN}>.jpg",
    f"</style><script>{PWN}</script>.jpg",
    f"<svg onload={PWN}>.jpg",
    f"\"><script>{PWN}</script>.jpg",
    f"' onerror='{PWN}' x='.jpg",
    f"--><iframe srcdoc=<script>parent.{PWN}</script>>.jpg",
    f"javascript:{PWN}.jpg",
    "&lt;script&gt; &amp; &#60;b&#62;.jpg",
    "\u202egnp.exe\x1b[2J\x7f.jpg",
)


class Dom(HTMLParser):
    """The title, tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.title, self._open = "", "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, text: str) -> None:
        if self._open == "title":
            self.title += text
        elif self._open != "style":
            self.text += text

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def find_browser() -> str | None:
    """Chromium or Chrome, if one is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def open_page(browser: str, file: Path, profile: Path) -> Dom:
    """What a page is after its scripts have run."""
    ended = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
         "--virtual-time-budget=2000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )
    return Dom(ended.stdout)
