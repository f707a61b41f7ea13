"""Answers beyond those of ``tests.site``: held back until the test wants them, or in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.site import Hit, Page
from tests.support.crawling import PATIENCE

Script = Page | str | int | Callable[[Hit], Page]


def _play(script: Script, hit: Hit) -> Page:
    if isinstance(script, int):
        return Page(status=script)
    if isinstance(script, str):
        return Page(script)
    return script if isinstance(script, Page) else script(hit)


class Held:
    """A page that is answered when the test says so.

    ``begun`` is set once the site has been asked, and ``go`` lets it answer.
    """

    def __init__(self, script: Script = 200) -> None:
        self._script = script
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, hit: Hit) -> Page:
        self.begun.set()
        if not self.go.wait(PATIENCE):
            return Page("the test did not let it go", 500)
        return _play(self._script, hit)


def in_turn(*scripts: Script) -> Callable[[Hit], Page]:
    """Answer each hit with the next of these, and with the last one from then on."""
    left = list(scripts)
    lock = threading.Lock()

    def answer(hit: Hit) -> Page:
        with lock:
            script = left.pop(0) if len(left) > 1 else left[0]
        return _play(script, hit)

    return answer
