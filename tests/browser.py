"""A headless browser for tests of pages: the system's chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium (see docs/report.md)"
)


@contextmanager
def open_browser() -> Iterator[Any]:
    """The browser; one at a time in a process, for playwright allows no more."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Any, path: Path, *, width: int = 1280, **settings: Any) -> Iterator[Any]:
    """The page at `path`, opened as from a share and without a network; whatever it complains of fails the test."""
    complaints: list[str] = []
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, **settings)
    page = context.new_page()
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed request: {request.url[:100]}"))
    page.goto(path.as_uri())
    try:
        yield page
    finally:
        context.close()
    assert not complaints, complaints
