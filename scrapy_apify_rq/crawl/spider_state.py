"""``spider.state``, a dict in which a spider may keep what it wants to know in its next run.

With Scrapy's own scheduler it exists only with JOBDIR: an extension makes it, and pickles it at a
clean end. Here every spider has it, from before ``start()``. With JOBDIR, too, what we have saved
is what counts, because it is never older than the pickle. Where we have saved nothing, the pickle
stands.

https://docs.scrapy.org/en/latest/topics/jobs.html#keeping-persistent-state-between-batches
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from scrapy import signals

from scrapy_apify_rq.entries.records import from_text, to_text
from scrapy_apify_rq.errors import CodecError

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.entries.converter import RequestConverter


class SpiderState:
    """``report`` is told of each value that cannot be saved or restored."""

    def __init__(
        self, crawler: Crawler, converter: RequestConverter, report: Callable[[str], None]
    ) -> None:
        self._signals = crawler.signals
        self._spider: Any = crawler.spider
        self._converter = converter
        self._report = report
        self._restored: dict[Any, Any] = {}
        self._unreadable: list[JsonValue] = []
        """Kept as they are, for a version of the project that has their classes."""
        self._filled: object = None
        """The dict that holds what was restored."""
        # A spider may have an attribute of that name for a purpose of its own, such as the argument
        # of "-a state=CA".
        self._is_ours = isinstance(getattr(self._spider, "state", {}), dict)

    def provide(self) -> None:
        """Let the spider have a state."""
        if not hasattr(self._spider, "state"):
            self._spider.state = {}

    def restore(self, text: bytes) -> int:
        """Put what was saved into the spider's state. Return how many values there were."""
        if not self._is_ours:
            return 0
        try:
            pairs = from_text(text)
            if type(pairs) is not list:
                raise CodecError("the record is not a list")
        except CodecError as error:
            self._report(f"spider.state cannot be restored: {error}")
            return 0
        for pair in pairs:
            try:
                self._restored.update(_dict(self._converter.read_value(pair)))
            except CodecError as error:
                self._unreadable.append(pair)
                self._report(f"A value of spider.state cannot be restored: {error}")
        self._put()
        # Scrapy's extension makes another dict. Its handler was connected before ours.
        self._signals.connect(self._put, signals.spider_opened)
        return len(self._restored)

    def _put(self) -> None:
        # Into the dict that is there, because others may have it already.
        state = self._spider.state
        if state is not self._filled:
            self._filled = state
            state.clear()
            state.update(self._restored)

    def to_text(self) -> bytes | None:
        """What can be saved of the state; None if nothing can."""
        if not self._is_ours:
            return None
        state = getattr(self._spider, "state", None)
        if not isinstance(state, dict):
            self._report(f"spider.state is no longer a dict but a {type(state).__name__}")
            return None
        pairs = self._unreadable.copy()
        for key, value in list(state.items()):
            try:
                pairs.append(self._converter.write_value({key: value}, "spider.state"))
            except (CodecError, RuntimeError) as error:  # RuntimeError: a thread changes the value
                self._report(f"Not saved: {error}")
        return to_text(pairs)


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise CodecError("the record holds a value without a key")
    return value
