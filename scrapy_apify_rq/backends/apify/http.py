"""HTTP to the Apify API, for the backend that keeps a queue there: the token, rates, retries.

Nothing else of this package is a client of HTTP, but ``actor`` has a websocket of its own. The
platform's rates are for a queue, and each process keeps to them by itself: where several share a
queue, the API slows them down, with 429.

It is aiohttp's client and not httpx, because a PUT costs it 0.07 ms of CPU: httpx with aiohttp as
its transport takes 0.13 ms, and httpx with its own 0.6, 1.4 and 3.1 ms at 4, 16 and 64 connections
(benchmarks/http_transport.py).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import aiohttp

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, OTHER_RATE

logger = logging.getLogger(__name__)

# https://docs.apify.com/api/v2#rate-limiting recommends 500 ms, doubling, with jitter.
_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 30.0
# aiohttp has no timeout for writing, so a server that stops reading is held to the total.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=360, sock_connect=10, sock_read=30)
# Enough for CRUD_RATE at 0.3 seconds a call.
CONNECTIONS: Final = 120
# A batch of 25 links, 5.8 KB, becomes 1.0 KB in 0.012 ms of CPU; the call itself costs 0.07 ms
# (benchmarks/http_transport.py). Below this size all fits into one packet anyway.
_COMPRESS_FROM: Final = 1024


class _Pace:
    """Lets no more than ``rate`` calls begin in any one second, first come, first served."""

    def __init__(self, rate: float) -> None:
        # Together 99 % of the rate. The burst makes up for timers that are late.
        self._interval = 1 / (0.95 * rate)
        self._burst = 0.04
        self._next = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def is_busy(self) -> bool:
        """Calls wait for their turn."""
        return bool(self._queue)

    async def wait(self) -> None:
        if not self._queue and self._take(time.monotonic()):
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        if len(self._queue) == 1:
            self._come_again()
        await turn

    def _take(self, now: float) -> bool:
        if self._next > now:
            return False
        # From when this call begins, and not from its turn: a loop that stood still for long must
        # not catch up with all that waited.
        self._next = max(self._next, now - self._burst) + self._interval
        return True

    def _come_again(self) -> None:
        delay = self._next - time.monotonic()
        asyncio.get_running_loop().call_later(delay, self._let_pass)

    def _let_pass(self) -> None:
        """As many as are due: a busy loop has not a turn for each."""
        now = time.monotonic()
        while self._queue and (self._queue[0].done() or self._take(now)):
            turn = self._queue.popleft()
            if not turn.done():  # it was not cancelled
                turn.set_result(None)
        if self._queue:
            self._come_again()


class Refused(Exception):
    """The API refuses this one call (4xx) and would refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Passing(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, *, maybe_done: bool, delay: float = 0) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        """The call may have had its effect all the same."""
        self.delay = delay
        """Seconds that the server asks us to wait."""


class Answer(NamedTuple):
    data: Any
    maybe_repeated: bool
    """An earlier attempt, whose answer we do not know, may have had the effect already."""


class Client:
    """HTTP to one API, with one token: paced, retried, errors mapped."""

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        patience: float,
        inc_stat: Callable[[str], None],
    ) -> None:
        self._base_url = f"{base_url}/v2/"
        self._headers = {
            "User-Agent": f"scrapy-apify-rq/{version('scrapy-apify-rq')}",
            "Accept": "application/json",
        }
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._token = token
        self._session: aiohttp.ClientSession | None = None
        self.patience = patience
        self._inc_stat = inc_stat
        self._paces = {rate: _Pace(rate) for rate in (CRUD_RATE, BATCH_RATE, OTHER_RATE)}
        self._warned: set[str] = set()

    def open(self) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=_TIMEOUT,
            )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def is_paced(self, rate: int) -> bool:
        """Calls of this class wait, since more at a time would exceed the rate."""
        return self._paces[rate].is_busy

    async def call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        rate: int,
        body: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> Answer:
        """Retries what may pass; ``name`` is for stats and messages.

        Raises Refused for what concerns this call only, BackendError for what concerns all.
        """
        headers, content = _encoded(body)
        url = self._base_url + path
        attempt = 0
        since = 0.0
        maybe_done = False
        while True:
            await self._paces[rate].wait()
            if self._session is None:
                raise BackendError(f"{name}: the connection to the Apify API is closed.")
            self._inc_stat(f"apify_rq/api/calls/{name}")
            since = since or time.monotonic()
            try:
                call = self._session.request(
                    method, url, params=query, headers=headers, data=content, allow_redirects=False
                )
                data = self._read(*await self._send(call))
            except Passing as failure:
                maybe_done = maybe_done or failure.maybe_done
                self._inc_stat("apify_rq/api/retries")
                await self.back_off(name, failure, attempt, since)
                attempt += 1
            else:
                if name in self._warned:
                    self._warned.discard(name)
                    logger.info("The Apify API works again (%s)", name)
                return Answer(data, maybe_done)

    async def _send(
        self, call: AbstractAsyncContextManager[aiohttp.ClientResponse]
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        try:
            async with call as answer:
                return answer, await answer.read()
        # aiohttp lets some errors of the system through as they are.
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError)
            problem = self._redacted(f"{type(error).__name__}: {error}")
            raise Passing(problem, maybe_done=connected) from None

    def _read(self, answer: aiohttp.ClientResponse, body: bytes) -> Any:
        """The ``data`` of an answer."""
        if 200 <= answer.status < 300:
            try:
                return json.loads(body)["data"] if body else None
            except (ValueError, LookupError, TypeError):
                raise Passing("the answer is not one of the API", maybe_done=True) from None
        problem, kind = self._problem(answer, body)
        limited = answer.status == HTTPStatus.TOO_MANY_REQUESTS
        if limited:
            self._inc_stat("apify_rq/api/rate_limited")
        passes = (
            limited
            or answer.status >= 500
            or answer.status == HTTPStatus.REQUEST_TIMEOUT
            or kind == "request-aborted-prematurely"  # a 400 all the same
        )
        if not passes:
            raise Refused(answer.status, problem)
        raise Passing(problem, maybe_done=not limited, delay=_retry_after(answer))

    def _problem(self, answer: aiohttp.ClientResponse, body: bytes) -> tuple[str, str]:
        """For people, and the API's type of error."""
        try:
            error = json.loads(body)["error"]
            kind, message = str(error["type"]), str(error["message"])
        except (ValueError, LookupError, TypeError):
            return f"{answer.status} {answer.reason}", ""
        return self._redacted(f"{answer.status} {kind}: {message}"), kind

    def _redacted(self, text: str) -> str:
        """Without the token, which a proxy may quote."""
        return text.replace(self._token, "<token>") if self._token else text

    async def back_off(self, name: str, problem: Passing, attempt: int, since: float) -> None:
        """Wait before the next attempt of a call that has failed since then.

        Raises BackendError when our patience is over.
        """
        failing_for = time.monotonic() - since
        if failing_for >= self.patience:
            raise BackendError(
                f"The Apify API has failed for {failing_for:.0f} seconds"
                f" (APIFY_RQ_UNAVAILABLE_TIMEOUT is {self.patience:g}), last {name}: {problem}."
                " What is unfinished stays pending: run the spider again when the API can be"
                " reached at APIFY_API_BASE_URL."
            )
        backoff = min(_FIRST_BACKOFF * 2 ** min(attempt, 10), _LONGEST_BACKOFF)
        delay = max(backoff * random.uniform(1, 2), problem.delay)
        # One last attempt when our patience ends, and not long after.
        delay = min(delay, self.patience - failing_for)
        logger.debug("%s failed (%s), tried again in %.1f s", name, problem, delay)
        if attempt >= 2 and name not in self._warned:
            self._warned.add(name)
            logger.warning(
                "The Apify API fails, %s: %s. Tried again for up to %g s, see"
                " APIFY_RQ_UNAVAILABLE_TIMEOUT",
                name,
                problem,
                self.patience,
            )
        await asyncio.sleep(delay)


def _encoded(body: bytes | None) -> tuple[dict[str, str], bytes | None]:
    if body is None:
        return {}, None
    headers = {"Content-Type": "application/json"}
    if len(body) < _COMPRESS_FROM:
        return headers, body
    return {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1)


def _retry_after(answer: aiohttp.ClientResponse) -> float:
    """The header's seconds, or those until its date."""
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
