"""The HTTP client of the Apify API: the token, the rates, retries, and errors.

This is the only HTTP client in the package; ``actor`` has a websocket besides. The platform's rates
apply to a queue. Each process keeps to them on its own, so when several processes share a queue,
the API slows them down with 429.

The client is aiohttp because a PUT costs 0.07 ms of CPU with it. httpx takes 0.13 ms with aiohttp
as its transport, and 0.6, 1.4 and 3.1 ms with its own at 4, 16 and 64 connections
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
# aiohttp has no timeout for writing; the total covers a server that stops reading.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=360, sock_connect=10, sock_read=30)
# Enough for CRUD_RATE at 0.3 seconds a call.
CONNECTIONS: Final = 120
# A batch of 25 links shrinks from 5.8 KB to 1.0 KB in 0.012 ms of CPU; the call itself costs
# 0.07 ms (benchmarks/http_transport.py). A smaller body fits into one packet anyway.
_COMPRESS_FROM: Final = 1024
# The rest of a larger answer is read only when few others of that size are being read: an answer
# can have 9 MB, and there is a connection for each of 120 calls.
_SMALL_ANSWER: Final = 64 * 1024
_LARGE_ANSWERS: Final = 2
# An entry of 9 MB fits even when all of its characters are escaped.
_LONGEST_ANSWER: Final = 32 * 1024 * 1024
# Seconds that closing the connections may take.
_CLOSE_PATIENCE: Final = 5


class _Pace:
    """Lets at most ``rate`` calls start per second, in the order in which they came."""

    def __init__(self, rate: float) -> None:
        # Together these are 99 % of the rate. The burst makes up for late timers.
        self._interval = 1 / (0.95 * rate)
        self._burst = 0.04
        self._next = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether calls wait for their turn."""
        return bool(self._queue)

    async def wait(self) -> None:
        if not self._queue and self._may_start(time.monotonic()):
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        if len(self._queue) == 1:
            self._set_timer()
        await turn

    def _may_start(self, now: float) -> bool:
        if self._next > now:
            return False
        # Counted from now, not from when it was due: after the loop was blocked for a while, the
        # calls that waited must not start all at once.
        self._next = max(self._next, now - self._burst) + self._interval
        return True

    def _set_timer(self) -> None:
        delay = self._next - time.monotonic()
        asyncio.get_running_loop().call_later(delay, self._start_due)

    def _start_due(self) -> None:
        """Start all calls that are due, since a busy loop runs this late."""
        now = time.monotonic()
        while self._queue and (self._queue[0].done() or self._may_start(now)):
            turn = self._queue.popleft()
            if not turn.done():  # done: the call was cancelled
                turn.set_result(None)
        if self._queue:
            self._set_timer()


class Refused(Exception):
    """The API refused this call (4xx), and would refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AnswerTooLong(Refused):
    """The answer is longer than what we read of one."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the answer is longer than {_LONGEST_ANSWER:,} bytes",
        )


class TransientError(Exception):
    """The call failed, and a retry may succeed."""

    def __init__(self, message: str, *, maybe_done: bool, delay: float = 0) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        """The call may have taken effect."""
        self.delay = delay
        """How many seconds the server asks us to wait."""


class Answer(NamedTuple):
    data: Any
    maybe_repeated: bool
    """An earlier attempt may have taken effect already; we did not get its answer."""


class Client:
    """Calls one API with one token. Keeps to the rates, retries, and maps the errors."""

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
        self._large_answers = asyncio.Semaphore(_LARGE_ANSWERS)
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
        if session is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await session.close()
        except TimeoutError:
            logger.warning(
                "The connections to the Apify API did not close within %s seconds", _CLOSE_PATIENCE
            )

    def is_paced(self, rate: int) -> bool:
        """Whether calls of this class wait because of their rate."""
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
        """Make a call and retry it while that may help. ``name`` is for stats and messages.

        Raises Refused if the API refuses this call, and BackendError if it stays unavailable.
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
            except TransientError as failure:
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
    ) -> tuple[aiohttp.ClientResponse, bytearray]:
        try:
            async with call as answer:
                return answer, await self._body(answer.content)
        # aiohttp does not wrap all errors of the system.
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError)
            problem = self._redacted(f"{type(error).__name__}: {error}")
            raise TransientError(problem, maybe_done=connected) from None

    async def _body(self, content: aiohttp.StreamReader) -> bytearray:
        """Read an answer. Bounds how many bytes of large answers are in memory at a time."""
        body = bytearray()
        await _read_up_to(_SMALL_ANSWER, content, body)
        if len(body) >= _SMALL_ANSWER:
            async with self._large_answers:
                await _read_up_to(_LONGEST_ANSWER, content, body)
        if len(body) >= _LONGEST_ANSWER:
            raise AnswerTooLong
        return body

    def _read(self, answer: aiohttp.ClientResponse, body: bytearray) -> Any:
        """Return the ``data`` of an answer, or raise its error."""
        if 200 <= answer.status < 300:
            try:
                return json.loads(body)["data"] if body else None
            except (ValueError, LookupError, TypeError):
                raise TransientError("the answer is not the API's", maybe_done=True) from None
        problem, kind = self._problem(answer, body)
        limited = answer.status == HTTPStatus.TOO_MANY_REQUESTS
        if limited:
            self._inc_stat("apify_rq/api/rate_limited")
        is_transient = (
            limited
            or answer.status >= 500
            or answer.status == HTTPStatus.REQUEST_TIMEOUT
            or kind == "request-aborted-prematurely"  # this one is a 400
        )
        if not is_transient:
            raise Refused(answer.status, problem)
        raise TransientError(problem, maybe_done=not limited, delay=_retry_after(answer))

    def _problem(self, answer: aiohttp.ClientResponse, body: bytearray) -> tuple[str, str]:
        """Describe an error for people, and name its type in the API."""
        try:
            error = json.loads(body)["error"]
            kind, message = str(error["type"]), str(error["message"])
        except (ValueError, LookupError, TypeError):
            return f"{answer.status} {answer.reason}", ""
        return self._redacted(f"{answer.status} {kind}: {message}"), kind

    def _redacted(self, text: str) -> str:
        """Remove the token, which a proxy may quote."""
        return text.replace(self._token, "<token>") if self._token else text

    async def back_off(
        self, name: str, problem: TransientError, attempt: int, since: float
    ) -> None:
        """Wait before the next attempt of a call that was first made at ``since``.

        Raises BackendError when it has failed for longer than our patience.
        """
        failing_for = time.monotonic() - since
        if failing_for >= self.patience:
            raise BackendError(
                f"The Apify API has failed for {failing_for:.0f} seconds"
                f" (APIFY_RQ_UNAVAILABLE_TIMEOUT is {self.patience:g}). The last error was"
                f" {name}: {problem}. Unfinished requests stay pending: run the spider again when"
                " APIFY_API_BASE_URL can be reached."
            )
        backoff = min(_FIRST_BACKOFF * 2 ** min(attempt, 10), _LONGEST_BACKOFF)
        delay = max(backoff * random.uniform(1, 2), problem.delay)
        # The last attempt is made when our patience ends, not long after.
        delay = min(delay, self.patience - failing_for)
        logger.debug("%s failed (%s), retrying in %.1f s", name, problem, delay)
        if attempt >= 2 and name not in self._warned:
            self._warned.add(name)
            logger.warning(
                "The Apify API fails, %s: %s. Retrying for up to %g s, see"
                " APIFY_RQ_UNAVAILABLE_TIMEOUT",
                name,
                problem,
                self.patience,
            )
        await asyncio.sleep(delay)


async def _read_up_to(length: int, content: aiohttp.StreamReader, body: bytearray) -> None:
    """Append to ``body`` until it has this length, or until the end of the content."""
    while len(body) < length and (chunk := await content.read(length - len(body))):
        body += chunk


def _encoded(body: bytes | None) -> tuple[dict[str, str], bytes | None]:
    if body is None:
        return {}, None
    headers = {"Content-Type": "application/json"}
    if len(body) < _COMPRESS_FROM:
        return headers, body
    return {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1)


def _retry_after(answer: aiohttp.ClientResponse) -> float:
    """The seconds that the header names, or those until the date that it names."""
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
