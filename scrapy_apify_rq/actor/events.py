"""Events of an Actor run: they come over a websocket, and the end of its time by the clock.

https://docs.apify.com/platform/actors/development/programming-interface/system-events

A missed event loses nothing, since the queue holds all that is still to be done. An event only
saves pages from being fetched twice, and runs from being killed before they have closed.
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
from scrapy_apify_rq.plurals import plural

if TYPE_CHECKING:
    import aiohttp
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.config import Config

logger = logging.getLogger(__name__)

# Seconds that a run has to end after "aborting", or before its time is up: half of them for the
# pages under way, half for closing pipelines, feeds and the queue.
_TIME_TO_STOP: Final = 30.0
# Seconds between two attempts to connect. They double from the first to the longest.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
# Seconds between two pings, which detect a dead connection.
_HEARTBEAT: Final = 30.0
# Seconds that the server has to answer when we close the websocket.
_CLOSE_PATIENCE: Final = 1.0
# Connecting again after one of these codes would not help: 1008 means that the server does not know
# the run, or that the run has too many connections. The others are errors of the protocol.
_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1010})


class RunEvents:
    """Acts on the events of the Actor run between ``open`` and ``close``.

    "migrating" calls ``hold`` each time. The crawl then stays open until the platform ends the
    process, since exiting with 0 would end the run as succeeded. "aborting", and the end of the
    run's time, stop the crawl as Ctrl-C does. Downloads and callbacks that take too long are
    abandoned; their requests stay pending in the queue.

    If ``apify.Actor`` is initialised in this process, its connection is used instead of one of our
    own. Outside an Actor run nothing happens. Never raises.
    """

    def __init__(
        self, crawler: Crawler, config: Config, hold: Callable[[], Awaitable[None]]
    ) -> None:
        self._crawler = crawler
        self._url = config.events_url
        self._timeout_at = config.timeout_at
        self._hold = hold
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self.is_out_of_time = False
        """The crawl was stopped because the platform would have ended the run soon."""
        self._stop_task: asyncio.Task[None] | None = None
        self._sdk: Any = None
        self._has_warned = False

    def open(self) -> None:
        if self._timeout_at is not None:
            self._spawn(self._watch_the_clock(self._timeout_at))
        if self._url is not None and not self._listen_through_sdk():
            self._spawn(self._listen(self._url))

    async def close(self) -> None:
        """End all tasks and connections within a few seconds, except a stop that is under way: it
        calls this method and waits for it.
        """
        if self._sdk is not None:
            with suppress(RuntimeError):  # the Actor has already exited
                self._sdk.Actor.off(self._sdk.Event.MIGRATING, self.migrating)
                self._sdk.Actor.off(self._sdk.Event.ABORTING, self.aborting)
        # The first cancellation closes the websocket, the second one ends the wait for its answer.
        for _ in range(2):
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=2 * _CLOSE_PATIENCE)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Bug in scrapy-apify-rq", exc_info=error)

    # What happens on an event.

    async def migrating(self) -> None:
        self._log(
            logging.INFO,
            "The Actor run is about to be migrated: no more requests are started, and those under"
            " way are saved. The process waits for the platform to end it",
        )
        await self._hold()

    async def aborting(self) -> None:
        self._stop("is being aborted", _TIME_TO_STOP)

    async def _watch_the_clock(self, timeout_at: datetime) -> None:
        left = (timeout_at - datetime.now(UTC)).total_seconds()
        if left > 0:
            # A run that is shorter than the time to stop should still crawl.
            seconds = min(_TIME_TO_STOP, left / 2)
            await asyncio.sleep(left - seconds)
            self.is_out_of_time = not self._is_stopping
            self._stop("has nearly used up its time", seconds)

    def _stop(self, why: str, seconds: float) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        self._log(logging.WARNING, f"The Actor run {why}: stopping within {seconds:.0f} s")
        self._spawn(self._stop_crawler())
        self._spawn(self._abandon_after(seconds / 2))

    async def _stop_crawler(self) -> None:
        # Before the engine runs, stop_async() would do nothing, and it works only once.
        while self._crawler.crawling and not self._crawler.engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        # Not one of our tasks: it contains close().
        self._stop_task = asyncio.create_task(self._stop_unless_closing())
        self._stop_task.add_done_callback(self._note_end)

    async def _stop_unless_closing(self) -> None:
        # During a close, stop_async() would end the process before the close is complete.
        if not scrapy_private.is_closing(self._crawler.engine):
            await self._crawler.stop_async()

    async def _abandon_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if unfinished := len(scrapy_private.unfinished(self._crawler.engine)[0]):
            self._log(
                logging.WARNING,
                f"Still under way and abandoned: {unfinished}"
                f" {plural(unfinished, 'request')}. The next run crawls what stays pending",
            )
        while True:  # until close(), since the engine closes one part after the other
            scrapy_private.abandon(self._crawler.engine)
            await asyncio.sleep(0.1)

    # How events arrive.

    def _listen_through_sdk(self) -> bool:
        """Use the connection of the SDK, if there is one: a second one could be refused."""
        sdk: Any = sys.modules.get("apify")
        if sdk is None:
            return False
        try:
            sdk.Actor.on(sdk.Event.MIGRATING, self.migrating)
            sdk.Actor.on(sdk.Event.ABORTING, self.aborting)
        except RuntimeError:  # it is imported but not initialised
            return False
        self._sdk = sdk
        return True

    async def _listen(self, url: str) -> None:
        import aiohttp  # late: only an Actor run needs it

        timeout = aiohttp.ClientWSTimeout(ws_close=_CLOSE_PATIENCE)
        pause = _FIRST_PAUSE
        async with aiohttp.ClientSession() as session:
            while True:
                began = time.monotonic()
                try:
                    async with session.ws_connect(
                        url, heartbeat=_HEARTBEAT, timeout=timeout
                    ) as socket:
                        await self._receive(socket)
                    code = socket.close_code
                except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                    # Without its text, which may quote the address with its secret.
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

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Act on messages until the connection ends."""
        async for message in socket:
            name = _event_name(message.data)
            if name == "migrating":
                self._spawn(self.migrating())
            elif name == "aborting":
                await self.aborting()
            elif name is None:
                self._warn("received a message that is not an event")

    # Log lines.

    def _warn(self, reason: str) -> None:
        """Warn once, since the crawl works without the events."""
        self._log(
            logging.DEBUG if self._has_warned else logging.WARNING,
            f"The connection for the events of the Actor run: {reason}. The crawl goes on without"
            " them; after a migration or an abort, pages that were under way are crawled again",
        )
        self._has_warned = True

    def _log(self, level: int, text: str) -> None:
        logger.log(level, text, extra={"spider": self._crawler.spider})


def _event_name(message: object) -> str | None:
    """Return the name of an event, or None if the message is not an event."""
    try:
        name = json.loads(message)["name"]  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str) else None
