"""The page of jobs.report in a real browser, by mouse and by keyboard."""

import re
from html import unescape

import pytest

from jobs.report.__main__ import main
from pipeline.batch import FaceBatch, ImageRecord, Status
from tests.jobs.preview.test_write import aligned, photo, write_output, write_photo
from tests.support.browser import HOSTILE, PWN

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

NAMES = (*HOSTILE, "plain a.jpg", "plain b.jpg")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of an output with hostile names and reasons, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("report") / f"<b title='{PWN}'>"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(folder, name, photo(len(name), 450, 350))
    failed = tuple(ImageRecord(f"{folder}/failed/{name}", Status.FAILED, name) for name in HOSTILE)
    write_output(folder / "out", aligned(folder, NAMES), FaceBatch.without_faces(failed))
    assert main([str(folder / "out"), str(folder.parent / "report.html"), "--photos", "3"]) == 0
    return folder.parent / "report.html"


def test_filter_sort_and_click(page_file, open_file):
    from playwright.sync_api import expect  # takes a moment, and only tests of pages need it

    tab = open_file(page_file)
    page, tiles = tab.page, tab.page.locator("#tiles button")
    assert tiles.count() == len(NAMES) and page.locator("#matching").inner_text() == "11 of 11 faces"
    page.get_by_role("searchbox").press_sequentially("PLAIN")
    expect(tiles).to_have_count(2)
    assert page.locator("#matching").inner_text() == "2 of 11 faces"
    page.get_by_label("reversed").check()
    expect(tiles.first).to_have_attribute("title", "plain b.jpg #0")
    page.get_by_label("Size from").fill("9999")
    expect(tiles).to_have_count(0)
    page.get_by_label("Size from").fill("")
    page.get_by_role("button", name="plain a.jpg #0").click()
    dialog = page.get_by_role("dialog", name="plain a.jpg #0")
    alike = dialog.locator("#face-alike li")
    assert dialog.is_visible() and alike.count() == 8 and "cosine" in alike.first.inner_text()
    alike.first.get_by_role("button").click()
    assert page.locator("#face-name").inner_text() != "plain a.jpg #0"
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    assert tab.requests == tab.errors == []


def test_keyboard_alone(page_file, open_file):
    page = open_file(page_file).page
    page.get_by_label("reversed").focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.title"
    first = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    assert first.endswith("#0") and page.evaluate(focused) != first
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.locator("#face-name").inner_text() == page.locator("#tiles button").last.get_attribute("title")
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == page.locator("#tiles button").last.get_attribute("title")
    assert page.locator("#tiles button[tabindex='0']").count() == 1


def test_hostile_names_are_text(page_file, open_file):
    html = page_file.read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=Content-Security-Policy [^>]*>", html)[0]
    assert "default-src 'none'" in policy and "'unsafe-inline'; script-src 'sha256-" in unescape(policy)
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(", html)
    bare = page_file.with_name("without policy.html")
    bare.write_text(html.replace(policy, ""), encoding="utf-8")                # escaping alone is enough
    for file in (page_file, bare):
        tab = open_file(file)
        for number in range(len(NAMES)):
            tab.page.locator("#tiles button").nth(number).click()
            tab.page.keyboard.press("Escape")
        dom = tab.dom()
        assert dom.title.startswith("Faces: ") and dom.title != "pwned"
        assert not dom.tags & {"iframe", "object", "embed", "base", "link"}
        assert not [name for name, _ in dom.attributes if name.startswith("on") or name == "srcdoc"]
        assert tab.requests == tab.errors == []
        text = tab.page.locator("body").inner_text()
        assert all(f"failed/{name}" in text for name in HOSTILE[:-1]) and not re.search("[\u202e\x1b\x7f]", text)


def test_a_phone_in_the_dark(page_file, open_file, tmp_path):
    page = open_file(page_file).page
    page.set_viewport_size({"width": 360, "height": 700})
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#tiles button").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] == 0 and box["width"] <= 360
    page.screenshot(path=tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_without_scripts_all_is_there_to_read(page_file, open_file):
    page = open_file(page_file, javascript=False).page
    assert page.locator("#tiles img").count() == len(NAMES) and not page.locator("#filter").is_visible()
    assert "Filters, sorting" in page.locator("noscript").inner_text()
    assert page.locator("#photos article").count() == 3 and "cosine" in page.locator("#photos").inner_text()
    assert page.locator("svg[role=img]").first.get_attribute("aria-label").startswith("Faces a photo: from")
