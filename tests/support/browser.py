"""A real browser, and names that would run as scripts if a page did not show them as text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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
    """The tags, attributes and text of a page. title: of its tab."""

    def __init__(self, html: str, title: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.title, self._open = "", title, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, text: str) -> None:
        if self._open not in ("style", "title"):
            self.text += text

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@dataclass
class Tab:
    """An open page. requests: for anything but the file itself and what is in it. errors: of its scripts and policy."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def dom(self) -> Dom:
        """What the page is now."""
        return Dom(self.page.content(), self.page.title())


@contextmanager
def running_browser(program: str) -> Iterator[Browser]:
    """The browser without a window."""
    from playwright.sync_api import sync_playwright  # takes a moment, and only tests of pages need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def open_tab(browser: Browser, file: Path, *, javascript: bool = True) -> Tab:
    """A tab with a file, after its scripts have run."""
    context = browser.new_context(java_script_enabled=javascript, viewport={"width": 1280, "height": 800})
    tab = Tab(context.new_page())
    known = (file.as_uri(), "data:")
    tab.page.on("request", lambda request: request.url.startswith(known) or tab.requests.append(request.url))
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.on("console", lambda message: message.type == "error" and tab.errors.append(message.text))
    tab.page.goto(file.as_uri())
    return tab
