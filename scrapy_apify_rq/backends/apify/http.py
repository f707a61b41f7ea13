"""The HTTP client of a crawl, for the Apify API: the token, the rates, retries, and errors.

What is asked before the event loop runs is in ``blocking``; ``actor`` has a websocket besides. The
platform's rates apply to a queue; ``pace`` keeps to them.

Calls are those of httpx2, the maintained line of httpx, over the connections of ``transport``. They
do not go through httpx2's own client, which is there for redirects, cookies and credentials: none
of these is wanted here. Nothing of an answer is trusted: not its form, not its length, and not how
far it unpacks.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import time
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from importlib.metadata import version
from socket import gaierror
from ssl import SSLError
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import httpx2

from scrapy_apify_rq import retry_after
from scrapy_apify_rq.backends.apify.pace import Pace
from scrapy_apify_rq.backends.apify.transport import AiohttpTransport
from scrapy_apify_rq.errors import BackendError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# https://docs.apify.com/api/v2#rate-limiting recommends 500 ms, doubling, with jitter.
_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 30.0
# Seconds for a whole call, against a server that sends or reads one byte at a time.
_LONGEST_CALL: Final = 360
# Of these it is known that the call was not sent.
_UNSENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
# These are final, though they do not come from the API itself, but from a proxy before it. It may
# answer with others for a while, as with 502.
_ABOUT_THE_CALL: Final = frozenset((400, 413, 414, 422, 431))
# The account has spent what it may in this month, though the status is that of a missing right.
_SPENT: Final = "platform-feature-disabled"
# Seconds to try again while no call has succeeded, if the address or the certificate is wrong.
_HOPELESS_PATIENCE: Final = 3.0
# Enough for CRUD_RATE at 0.3 seconds a call.
CONNECTIONS: Final = 120
# A batch of 25 links shrinks from 5.8 KB to 1.0 KB in 0.012 ms of CPU
# (benchmarks/http_transport.py). A smaller body fits into one packet anyway, and a larger one would
# hold up the crawl: 8 MB take 170 ms.
_COMPRESS_FROM: Final = 1024
_COMPRESS_TO: Final = 64 * 1024
# The rest of a larger answer is read only when few others of that size are being read: an answer
# can have 9 MB, and there is a connection for each of 120 calls.
_SMALL_ANSWER: Final = 64 * 1024
_LARGE_ANSWERS: Final = 2
# An entry of 9 MB fits even when all of its characters are escaped.
_LONGEST_ANSWER: Final = 32 * 1024 * 1024
# Seconds that closing the connections may take.
_CLOSE_PATIENCE: Final = 5


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

    def __init__(
        self,
        message: str,
        *,
        maybe_done: bool,
        delay: float = 0,
        is_limit: bool = False,
        is_hopeless: bool = False,
    ) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        """The call may have taken effect."""
        self.delay = delay
        """How many seconds the server asks us to wait."""
        self.is_limit = is_limit
        """The API wants fewer calls."""
        self.is_hopeless = is_hopeless
        """Waiting rarely helps: the host is unknown, or its certificate is not valid."""


class Answer(NamedTuple, Generic[T]):
    data: T
    maybe_repeated: bool
    """An earlier attempt may have taken effect already; we did not get its answer."""


class Client:
    """Calls one API with one token. Keeps to the rates, retries, and maps the errors.

    ``transport`` takes the place of the network.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        patience: float,
        inc_stat: Callable[[str], None],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = f"{base_url}/v2/"
        headers = {
            "User-Agent": f"scrapy-apify-rq/{version('scrapy-apify-rq')}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
        }
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._headers = httpx2.Headers(headers)
        self._json_headers = self._headers | {"Content-Type": "application/json"}
        self._packed_headers = self._json_headers | {"Content-Encoding": "gzip"}
        self._token = token
        self._transport = transport
        self._connections: httpx2.AsyncBaseTransport | None = None
        self._has_worked = False
        self.patience = patience
        self._inc_stat = inc_stat
        self._paces: dict[tuple[str, int], Pace] = {}
        self._large_answers = asyncio.Semaphore(_LARGE_ANSWERS)
        self._warned: set[str] = set()

    def open(self) -> None:
        if self._connections is None:
            self._connections = self._transport or AiohttpTransport(self._base_url, CONNECTIONS)

    async def close(self) -> None:
        connections, self._connections = self._connections, None
        if connections is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await connections.aclose()
        except TimeoutError:
            logger.warning(
                "The connections to the Apify API did not close within %s seconds", _CLOSE_PATIENCE
            )

    def is_paced(self, rate: int) -> bool:
        """Whether calls of this class wait because of their rate."""
        return self._pace("", rate).is_busy

    def _pace(self, storage: str, rate: int) -> Pace:
        if (pace := self._paces.get((storage, rate))) is None:
            pace = self._paces[storage, rate] = Pace(rate)
        return pace

    async def call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        rate: int,
        read: Callable[[bytearray], T],
        body: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
        storage: str = "",
        may_link: bool = False,
    ) -> Answer[T]:
        """Make a call and retry it while that may help. ``name`` is for stats and messages, and
        ``read`` returns what an answer says, or raises ValueError. ``storage`` has rates of its
        own; it is the queue if none is named. With ``may_link`` the answer may be a link to what
        was asked for, which whoever has it may read: the token does not go there.

        Raises Refused if the API refuses this call, and BackendError if it stays unavailable.
        """
        url = f"{self._base_url}{path}?{urlencode(query)}" if query else self._base_url + path
        request = self._request(method, url, body)
        pace = self._pace(storage, rate)
        attempt = 0
        since = 0.0
        maybe_done = False
        while True:
            await pace.wait()
            if self._connections is None:
                raise BackendError(f"{name}: the connection to the Apify API is closed.")
            self._inc_stat(f"apify_rq/api/calls/{name}")
            since = since or time.monotonic()
            try:
                data = self._read(*await self._send(self._connections, request, may_link), read)
            except TransientError as failure:
                maybe_done = maybe_done or failure.maybe_done
                self._inc_stat("apify_rq/api/retries")
                if failure.is_limit:
                    self._inc_stat("apify_rq/api/rate_limited")
                    pace.slow_down(min(failure.delay, self.patience))
                await self.back_off(name, failure, attempt, since)
                attempt += 1
            else:
                self._has_worked = True
                if name in self._warned:
                    self._warned.discard(name)
                    logger.info("The Apify API works again (%s)", name)
                return Answer(data, maybe_done)

    def _request(self, method: str, url: str, body: bytes | None) -> httpx2.Request:
        headers = self._headers if body is None else self._json_headers
        if body is not None and _COMPRESS_FROM <= len(body) <= _COMPRESS_TO:
            headers, body = self._packed_headers, gzip.compress(body, 1)
        # Given as content, httpx2 would add headers that the transport adds anyway.
        return httpx2.Request(method, url, headers=headers, stream=httpx2.ByteStream(body or b""))

    async def _send(
        self, connections: httpx2.AsyncBaseTransport, request: httpx2.Request, may_link: bool
    ) -> tuple[httpx2.Response, bytearray]:
        try:
            async with asyncio.timeout(_LONGEST_CALL):
                answer = await connections.handle_async_request(request)
                try:
                    if may_link and (link := _link(request.url, answer)) is not None:
                        linked = httpx2.Request("GET", link, headers={"Accept-Encoding": "gzip"})
                        return await self._send(connections, linked, may_link=False)
                    return answer, await self._body(answer)
                finally:
                    await answer.aclose()
        # Connections that are closed during the call say so with a RuntimeError.
        except (httpx2.HTTPError, OSError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}"
            if isinstance(error, _UNSENT):
                what = f"cannot connect to {request.url.host}: {error}"
            raise TransientError(
                self._redacted(what),
                maybe_done=not isinstance(error, _UNSENT),
                is_hopeless=any(isinstance(one, SSLError | gaierror) for one in _causes(error)),
            ) from None

    async def _body(self, answer: httpx2.Response) -> bytearray:
        """Read an answer. Bounds how many bytes of large answers are in memory at a time."""
        body = bytearray()
        async with AsyncExitStack() as stack:
            is_large = False
            async for piece in _pieces(answer):
                body += piece
                if len(body) > _LONGEST_ANSWER:
                    raise AnswerTooLong
                if len(body) > _SMALL_ANSWER and not is_large:
                    is_large = True
                    await stack.enter_async_context(self._large_answers)
        return body

    def _read(self, answer: httpx2.Response, body: bytearray, read: Callable[[bytearray], T]) -> T:
        """Return what an answer says, or raise its error."""
        status = answer.status_code
        if 200 <= status < 300:
            try:
                if body or status == HTTPStatus.NO_CONTENT:
                    return read(body)
            except ValueError:
                pass
            raise TransientError("the answer is not the API's", maybe_done=True)
        problem, kind = self._problem(answer, body)
        is_limit = status == HTTPStatus.TOO_MANY_REQUESTS
        is_transient = (
            is_limit
            or status >= 500
            or status == HTTPStatus.REQUEST_TIMEOUT
            or kind == "request-aborted-prematurely"  # this one is a 400
            or (not kind and status not in _ABOUT_THE_CALL)
        )
        if not is_transient:
            raise Refused(HTTPStatus.PAYMENT_REQUIRED if kind == _SPENT else status, problem)
        raise TransientError(
            problem,
            maybe_done=not is_limit,
            delay=retry_after.seconds(answer.headers.get("Retry-After", ""), time.time()),
            is_limit=is_limit,
        )

    def _problem(self, answer: httpx2.Response, body: bytearray) -> tuple[str, str]:
        """Describe an error for people, and name its type in the API; none if it is not its."""
        try:
            error = json.loads(body)["error"]
            kind, message = str(error["type"]), str(error["message"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return self._redacted(f"{answer.status_code} {answer.reason_phrase}"), ""
        return self._redacted(f"{answer.status_code} {kind}: {message}"), kind

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
        patience = self.patience
        if problem.is_hopeless and not self._has_worked:
            patience = min(patience, _HOPELESS_PATIENCE)
            if failing_for >= patience:
                raise BackendError(
                    f"{name}: {problem}. Check APIFY_API_BASE_URL, the network and the certificates"
                    " of this machine (SSL_CERT_FILE)."
                )
        if failing_for >= patience:
            raise Unavailable(
                f"The Apify API has failed for {failing_for:.0f} s. The last error was"
                f" {name}: {problem}",
                f"APIFY_RQ_UNAVAILABLE_TIMEOUT is {self.patience:g}. Unfinished requests stay"
                " pending: run the spider again when APIFY_API_BASE_URL can be reached.",
            )
        backoff = min(_FIRST_BACKOFF * 2 ** min(attempt, 10), _LONGEST_BACKOFF)
        delay = max(backoff * random.uniform(1, 2), problem.delay)
        # The last attempt is made when our patience ends, not long after.
        delay = min(delay, patience - failing_for)
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


def _link(url: httpx2.URL, answer: httpx2.Response) -> httpx2.URL | None:
    """Where the answer to a call of this URL says that its content is."""
    if not answer.has_redirect_location:
        return None
    try:
        link = url.join(answer.headers["Location"])
    except httpx2.InvalidURL:
        return None
    return link if link.scheme in ("https", url.scheme) else None


def _pieces(answer: httpx2.Response) -> AsyncIterable[bytes]:
    """The unpacked content of an answer, at most 1 MB at a time."""
    is_packed = "Content-Encoding" in answer.headers
    if not is_packed and isinstance(answer.stream, httpx2.AsyncByteStream):
        return answer.stream  # as aiter_bytes() does, for less CPU; each page has such an answer
    return answer.aiter_bytes()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
