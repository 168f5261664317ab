"""What tells our pages from other HTML files."""

PAGE_START, PAGE_TITLE = b"<!doctype html><html lang=en><meta charset=utf-8>", b"<title>Faces: "


def is_page(content: bytes) -> bool:
    """Whether this is a page that one of our templates made, in this or an earlier version."""
    return content.startswith(PAGE_START) and PAGE_TITLE in content
