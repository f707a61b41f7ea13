"""Answers that a test holds back until it wants them, for the site of ``tests.site``."""

from __future__ import annotations

import threading
from tests.site import Hit, Page

PATIENCE = 20.0


class Held:
    """A page that is asked for, and answered when the test says so.

    ``begun`` is set once the site has been asked, and ``go`` lets it answer.
    """

    def __init__(self, page: Page | str | int = 200) -> None:
        self._page = _page(page)
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, hit: Hit) -> Page:
        self.begun.set()
        if not self.go.wait(PATIENCE):
            return Page("the test did not let it go", 500)
        return self._page


def _page(page: Page | str | int) -> Page:
    if isinstance(page, int):
        return Page(status=page)
    return Page(page) if isinstance(page, str) else page
