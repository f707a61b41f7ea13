"""httpx2 over the connections of aiohttp.

httpx2's own transport takes 0.9 ms of CPU for a PUT, this one 0.4 (benchmarks/http_transport.py): a
page of a crawl has one PUT and takes 4 ms in all. Two habits of aiohttp are switched off: it sends
a call again by itself where a kept connection drops, and it unpacks answers of any length at once.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from yarl import URL

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.setting_readers import is_loopback

# aiohttp has no timeout for writing.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
_LARGE: Final = 64 * 1024
_KEPT: Final = 30
"""Seconds that an idle connection is kept."""
# The first that fits; what is none of these may have been sent.
_ERRORS: Final[tuple[tuple[type[Exception], type[httpx2.TransportError]], ...]] = (
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.ClientProxyConnectionError, httpx2.ProxyError),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (TimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientError, httpx2.RemoteProtocolError),
    (OSError, httpx2.ReadError),
)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Keeps up to ``connections`` to one server open. Create it while the event loop runs.

    A proxy of the environment is used, except for this machine itself.
    """

    def __init__(self, server: str, connections: int) -> None:
        self._proxy = proxy_for(server)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=_KEPT),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_TIMEOUT,
            auto_decompress=False,
        )
        # There is no public way. That it works is shown by
        # tests/backends/test_http.py::test_nothing_is_sent_again_without_our_knowledge.
        self._session._retry_connection = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with _mapped():
            answer = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers,
                data=_data(await request.aread()),
                allow_redirects=False,
                proxy=self._proxy,
            )
        return httpx2.Response(
            answer.status, headers=list(answer.raw_headers), stream=_Content(answer)
        )

    async def aclose(self) -> None:
        await self._session.close()


def _data(content: bytes) -> bytes | io.BytesIO | None:
    if len(content) > _LARGE:
        return io.BytesIO(content)  # aiohttp sends it in pieces, and gives others their turn
    return content or None


class _Content(httpx2.AsyncByteStream):
    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _mapped():
            async for piece in self._answer.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        self._answer.close()  # which keeps the connection if all has been read


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except tuple(ours for ours, _ in _ERRORS) as error:
        theirs = next(theirs for ours, theirs in _ERRORS if isinstance(error, ours))
        raise theirs(f"{type(error).__name__}{_text(error)}") from error


def _text(error: Exception) -> str:
    """What it says, but not the URL that it quotes: that of a proxy may hold a password."""
    if isinstance(error, aiohttp.InvalidURL):
        return ""
    if isinstance(error, aiohttp.ClientResponseError):
        return f": {error.status} {error.message}"
    return f": {error}"


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this server.

    Raises BackendError, which does not show it, if it is none that we can use.
    """
    server = urlsplit(url)
    # Not aiohttp's trust_env, which would put the password of ~/.netrc in the place of the token.
    host = server.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies: dict[str, Any] = getproxies()
    proxy: str | None = proxies.get(server.scheme) or proxies.get("all")
    if proxy is None:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        # Reading the port is what checks it.
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        name = f"{server.scheme}_proxy"
        raise BackendError(
            f"The proxy of the environment for {server.scheme} (not shown here) is no HTTP proxy:"
            f" set {name} to an address such as http://host:8000, or no_proxy to {host!r}"
        )
    return proxy
