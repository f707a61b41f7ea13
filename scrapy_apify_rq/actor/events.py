"""What the platform does with an Actor run, told over a websocket and by the clock.

https://docs.apify.com/platform/actors/development/programming-interface/system-events

Nothing is lost where an event does not come: the queue alone says what is still to be done. An
event only saves a page from being fetched twice, or a run from being cut off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scrapy_apify_rq import scrapy_private

if TYPE_CHECKING:
    import aiohttp
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.config import Config

logger = logging.getLogger(__name__)

# Seconds in which a run must end after the event "aborting", or before its time is up: half of them
# for the pages under way, half for closing pipelines, feeds and the queue.
_TIME_TO_STOP: Final = 30.0
# Seconds between two attempts to connect: doubling, from and to.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
# Seconds between two pings, by which a dead connection is found out.
_HEARTBEAT: Final = 30.0
# The server closes with one of these for what connecting again would not change: 1008 is a run that
# it does not know, or one with too many connections; the others are errors of the protocol.
_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1010})


class RunEvents:
    """Acts on the events of the Actor run between ``open`` and ``close``.

    On "migrating" ``hold`` is awaited, at each such event, and the crawl stays open until the
    platform ends the process: one that exits with 0 would end the run as succeeded. On "aborting",
    and when the run's time is nearly up, the crawl is stopped as with Ctrl-C; downloads and
    callbacks that take too long are abandoned, their requests being still pending in the queue.

    An ``apify.Actor`` that is initialised in this process has a connection of its own, which is
    used then. Outside of a run nothing happens. Never raises.
    """

    def __init__(
        self, crawler: Crawler, config: Config, hold: Callable[[], Awaitable[None]]
    ) -> None:
        self._crawler = crawler
        self._url = config.events_url
        self._timeout_at = config.timeout_at
        self._hold = hold
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopper: asyncio.Task[None] | None = None
        self._sdk: Any = None
        self._warned = False

    def open(self) -> None:
        if self._timeout_at is not None:
            self._spawn(self._watch_the_clock(self._timeout_at))
        if self._url is not None and not self._listen_through_sdk():
            self._spawn(self._listen(self._url))

    async def close(self) -> None:
        """Called by the stop that is under way, if there is one; so that must not be awaited."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sdk is not None:
            with suppress(RuntimeError):  # the Actor has exited already
                self._sdk.Actor.off(self._sdk.Event.MIGRATING, self.migrating)
                self._sdk.Actor.off(self._sdk.Event.ABORTING, self.aborting)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What happens on an event.

    async def migrating(self) -> None:
        self._log(
            logging.INFO,
            "The Actor run is about to be migrated: nothing more is handed out, and what is under"
            " way is saved. The process waits for the platform to end it",
        )
        await self._hold()

    async def aborting(self) -> None:
        self._stop("is being aborted", _TIME_TO_STOP)

    async def _watch_the_clock(self, timeout_at: datetime) -> None:
        left = (timeout_at - datetime.now(UTC)).total_seconds()
        if left > 0:
            # A run that is shorter than the time to stop shall crawl all the same.
            seconds = min(_TIME_TO_STOP, left / 2)
            await asyncio.sleep(left - seconds)
            self._stop("has nearly used up its time", seconds)

    def _stop(self, why: str, seconds: float) -> None:
        if self._stopper is not None:
            return
        self._log(logging.WARNING, f"The Actor run {why}: stopping within {seconds:.0f} seconds")
        self._stopper = asyncio.create_task(self._stop_crawler())
        self._spawn(self._abandon_after(seconds / 2))

    async def _stop_crawler(self) -> None:
        # Before the engine runs, stop_async() would not stop it, and nothing could any more.
        while self._crawler.crawling and not self._crawler.engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        # While the spider is being closed, it would end the process in the middle of that.
        if not scrapy_private.is_closing(self._crawler.engine):
            await self._crawler.stop_async()

    async def _abandon_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if unfinished := len(scrapy_private.unfinished(self._crawler.engine)[0]):
            self._log(
                logging.WARNING,
                f"{unfinished} requests are still under way and abandoned. They stay pending in"
                " the queue: the next run crawls them",
            )
        while True:  # until we are closed, since the engine closes one part after the other
            scrapy_private.abandon(self._crawler.engine)
            await asyncio.sleep(0.1)

    # How an event comes here.

    def _listen_through_sdk(self) -> bool:
        """True if the SDK's ``Actor`` is initialised; a second connection could be refused."""
        sdk: Any = sys.modules.get("apify")
        if sdk is None:
            return False
        try:
            sdk.Actor.on(sdk.Event.MIGRATING, self.migrating)
            sdk.Actor.on(sdk.Event.ABORTING, self.aborting)
        except RuntimeError:  # it is imported and not initialised
            return False
        self._sdk = sdk
        return True

    async def _listen(self, url: str) -> None:
        import aiohttp  # late: a crawl that is no Actor run may do without it

        pause = _FIRST_PAUSE
        async with aiohttp.ClientSession() as session:
            while True:
                began = time.monotonic()
                try:
                    code = await self._receive(session, url)
                except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                    # Its text may hold the address, and so what is secret in it.
                    reason = type(error).__name__
                else:
                    reason = f"closed with code {code}"
                    if code in _FINAL_CODES:
                        self._warn(f"{reason}; not connecting again")
                        return
                self._warn(f"{reason}; connecting again")
                if time.monotonic() - began > pause:
                    pause = _FIRST_PAUSE
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _receive(self, session: aiohttp.ClientSession, url: str) -> int | None:
        """Act on what comes until the connection ends; the code that it was closed with."""
        async with session.ws_connect(url, heartbeat=_HEARTBEAT) as socket:
            async for message in socket:
                name = _event_name(message.data)
                if name == "migrating":
                    self._spawn(self.migrating())
                elif name == "aborting":
                    await self.aborting()
                elif name is None:
                    self._warn("a message that is no event")
        return socket.close_code

    # What is told of it.

    def _warn(self, reason: str) -> None:
        """The first time only: a server that does not work is no matter of the crawl."""
        self._log(
            logging.DEBUG if self._warned else logging.WARNING,
            f"The connection for the events of the Actor run: {reason}. The crawl goes on without"
            " them; what is under way at a migration or an abort is crawled again",
        )
        self._warned = True

    def _log(self, level: int, text: str) -> None:
        logger.log(level, text, extra={"spider": self._crawler.spider})


def _event_name(message: object) -> str | None:
    """None: it is not an event."""
    try:
        name = json.loads(message)["name"]  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str) else None
