"""What a crawl keeps beside its entries: ``spider.state``, cookies, and the totals of all its runs.

They are restored before ``start()``, and saved at the end, before an Actor run is migrated, and
within 5 seconds of a change. They are not saved together with the acks, so after a ``kill -9`` they
may be that much older than the queue.

The names of the records, in which the owner is the client key of a worker, and empty in single
access:

    spider.state/{owner}
    cookies/{owner}/{hash of the jar's key}
    totals/{owner}

A worker in shared access has its own state, and gets it back under the same client key. The totals
of all workers are added up.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.crawl.cookies import Cookies
from scrapy_apify_rq.crawl.spider_state import SpiderState
from scrapy_apify_rq.crawl.totals import Totals
from scrapy_apify_rq.entries.records import owner_of
from scrapy_apify_rq.errors import CodecError

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.backends.base import Backend
    from scrapy_apify_rq.config import Config
    from scrapy_apify_rq.crawl.report import Report
    from scrapy_apify_rq.entries.converter import RequestConverter

# Seconds between two looks for changes: at least, and at most.
_SHORT_PAUSE: Final = 1.0
_LONG_PAUSE: Final = 4.5
# A look may take this share of the time.
_SHARE: Final = 0.02


class State:
    """Call ``provide`` before the queue is opened, ``open`` and ``run`` afterwards, and ``stop``
    and ``save`` before it is closed.
    """

    def __init__(
        self,
        crawler: Crawler,
        config: Config,
        backend: Backend,
        converter: RequestConverter,
        report: Report,
    ) -> None:
        self._crawler = crawler
        self._backend = backend
        self._converter = converter
        self._report = report
        self._wants_cookies = config.cookies
        is_worker = config.access == "shared"
        self._is_known = not is_worker or config.client_key is not None
        """A later run will find what this one saves."""
        self._owner = owner_of(config.client_key or secrets.token_hex(16)) if is_worker else ""
        self._cookies_prefix = f"cookies/{self._owner}/"
        self._spider_state = SpiderState(crawler, converter, report.not_kept)
        self._state_text: bytes | None = None
        self._cookies = self._find_cookies() if config.cookies else None
        self._earlier = Totals()
        """Those of our runs before this one."""
        self._counted = Totals()
        """Those of this run when they were last saved."""
        self._opened_at = 0.0
        self._unsaved: dict[str, bytes | None] = {}
        self._saving = asyncio.Lock()
        self._stopping = asyncio.Event()

    def _find_cookies(self) -> Cookies | None:
        try:
            jars = scrapy_private.cookie_jars(self._crawler)
        except LookupError as error:
            self._report.not_kept(f"Cookies are not saved: {error}")
            return None
        if jars is None:
            return None
        return Cookies(jars, self._cookies_prefix, self._converter, self._report.not_kept)

    def provide(self) -> None:
        self._spider_state.provide()

    async def open(self) -> None:
        """Restore what an earlier run has saved."""
        self._opened_at = time.monotonic()
        if not self._backend.keeps_records:
            self._report.no_records("cannot be saved, as is said above")
        elif not self._is_known:
            self._report.no_records("of a worker are saved only if APIFY_RQ_CLIENT_KEY names it")
        else:
            await self._restore_totals()
            values = await self._restore_spider_state()
            cookies = await self._restore_cookies()
            self._report.restored(values, cookies)

    async def _restore_totals(self) -> None:
        name = f"totals/{self._owner}"
        text = (await self._backend.load_records(name)).get(name)
        if text is not None:
            self._earlier = self._totals_of(text)

    async def _restore_spider_state(self) -> int:
        name = f"spider.state/{self._owner}"
        self._state_text = (await self._backend.load_records(name)).get(name)
        return 0 if self._state_text is None else self._spider_state.restore(self._state_text)

    async def _restore_cookies(self) -> int:
        records = await self._backend.load_records(self._cookies_prefix)
        if not self._wants_cookies:
            # Who does not want them there does not want old ones there either.
            await self._backend.save_records(dict.fromkeys(records))
        return 0 if self._cookies is None else self._cookies.restore(records)

    async def run(self) -> None:
        """Save regularly, and notice that the queue is gone, until ``stop``.

        Raises BackendError.
        """
        pause = _SHORT_PAUSE
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                    return
            await self._backend.check()
            began = time.monotonic()
            await self._save(even_time=False)
            pause = (time.monotonic() - began) / _SHARE
            pause = min(max(pause, _SHORT_PAUSE), _LONG_PAUSE)

    def stop(self) -> None:
        self._stopping.set()

    async def save(self) -> None:
        """Save what has changed, and the time until now. Raises BackendError."""
        await self._save(even_time=True)

    async def _save(self, *, even_time: bool) -> None:
        """``even_time``: save the totals even if only the time has changed."""
        if not self._backend.keeps_records:
            return
        async with self._saving:
            totals = self._totals()
            if even_time or totals[:-1] != self._counted[:-1]:
                self._counted = totals
                self._unsaved[f"totals/{self._owner}"] = self._earlier.plus(totals).to_text()
            if self._is_known:
                await self._collect()
            if self._unsaved:
                # It is emptied afterwards only, because this task can be cancelled.
                for name in await self._backend.save_records(self._unsaved):
                    kind = name.partition("/")[0]
                    self._report.not_kept(f"Not saved: {kind}, which is longer than the API takes")
                self._unsaved = {}

    async def _collect(self) -> None:
        text = self._spider_state.to_text()
        if text is not None and text != self._state_text:
            self._state_text = text
            self._unsaved[f"spider.state/{self._owner}"] = text
        if self._cookies is not None:
            await self._cookies.collect(self._unsaved)

    def has_new_values(self) -> bool:
        """``spider.state`` has changed since it was last saved."""
        if not (self._backend.keeps_records and self._is_known):
            return False
        return self._spider_state.to_text() not in (None, self._state_text)

    # Totals.

    def _totals(self) -> Totals:
        """Of this run."""
        handled, failed, retried = map(self._report.count, ("handled", "failed", "retried"))
        items = self._crawler.stats.get_value("item_scraped_count", 0)
        seconds = round(time.monotonic() - self._opened_at, 1)
        return Totals(1, handled, failed, retried, items, seconds)

    async def all_totals(self) -> Totals:
        """Of all runs and workers, as far as they are saved. Raises BackendError."""
        total = Totals()
        for text in (await self._backend.load_records("totals/")).values():
            total = total.plus(self._totals_of(text))
        return total

    def _totals_of(self, text: bytes) -> Totals:
        try:
            return Totals.from_text(text)
        except CodecError as error:
            self._report.not_kept(f"The totals of the crawl cannot be restored: {error}")
            return Totals()
