"""Who may call: whoever sends the token. Without one, programs on this machine, but no web page.

Any web page in a browser on this machine can send us calls: with forms and images, from a host name
that resolves to 127.0.0.1, or by a link that somebody follows. It cannot set the header
Authorization, nor hide that it comes from a page, nor call itself localhost.

Our own page may call, since it comes from this server and sends a token in that header: the
server's, or, where it has none, one that was made for the page when the server started.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from aiohttp import hdrs, web

from scrapy_apify_rq.server.errors import ApiError
from scrapy_apify_rq.setting_readers import is_loopback

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/?#\[\]]+))(?::\d{1,5})?", re.IGNORECASE)


class Access:
    """Checks calls against the server's ``token``, and ``host``, the address it listens on.
    ``page_token`` is that of the page, if there is one and the server has no token.
    """

    def __init__(self, token: str | None, host: str, page_token: str | None = None) -> None:
        self._token = token
        self._host = host.lower()
        self._page_token = page_token

    def verb(self, request: web.Request) -> str:
        """The verb of the call. That of a GET can be named by a parameter, but not in a link."""
        if request.method != "GET":
            return request.method
        verb = request.query.get("method", "GET").upper()
        if verb != "GET" and not _header_token(request):
            raise ApiError(
                403,
                "insufficient-permissions",
                'The parameter "method" needs the token in the header Authorization',
            )
        return verb

    def check(self, request: web.Request) -> None:
        """Raise unless the caller may call."""
        host = _host(request)
        if self._token is None:
            self._refuse_web_pages(request, host)
            return
        token = _header_token(request) or request.query.get("token", "").strip()
        # Choice: always, while the platform answers some reads by id to anybody.
        _demand(token, self._token)

    def _refuse_web_pages(self, request: web.Request, host: str) -> None:
        site = request.headers.get("Sec-Fetch-Site", "none")
        is_of_page = site != "none" or hdrs.ORIGIN in request.headers
        if not _is_own(host, self._host) or (is_of_page and not self._is_of_our_page(request)):
            raise _refusal()

    def _is_of_our_page(self, request: web.Request) -> bool:
        page_token = self._page_token or ""
        return _is_same_origin(request) and _equal(_header_token(request), page_token)


class PageAccess:
    """Checks calls to what only our page uses: it always needs its token, in the header."""

    def __init__(self, token: str, host: str, *, is_servers: bool) -> None:
        """``is_servers`` if ``token`` is the server's own: then any host name will do."""
        self._token = token
        self._host = host.lower()
        self._is_servers = is_servers

    def verb(self, request: web.Request) -> str:
        return request.method

    def check(self, request: web.Request) -> None:
        host = _host(request)
        is_own = self._is_servers or _is_own(host, self._host)
        if not is_own or not _is_same_origin(request):
            raise _refusal()
        _demand(_header_token(request), self._token)


def _demand(token: str, wanted: str) -> None:
    if not token:
        raise ApiError(401, "token-not-provided", "Authentication token was not provided")
    if not _equal(token, wanted):
        raise ApiError(
            401,
            "user-or-token-not-found",
            "User was not found or authentication token is not valid",
        )


def _equal(token: str, wanted: str) -> bool:
    """No token equals that of nobody."""
    # Bytes that are not UTF-8 arrive as lone surrogates.
    same = hmac.compare_digest(token.encode(errors="surrogatepass"), wanted.encode())
    return same and bool(wanted)


def _refusal() -> ApiError:
    return ApiError(
        403,
        "insufficient-permissions",
        "Web pages may not use this server, and its host name must be localhost or its IP"
        " address, unless it is started with --token",
    )


def _is_own(host: str, listened_on: str) -> bool:
    return host == listened_on or is_loopback(host)


def _is_same_origin(request: web.Request) -> bool:
    """Whether no page of another origin sent it. Programs send neither header."""
    origin = request.headers.get(hdrs.ORIGIN)
    is_own = origin is None or origin.partition("://")[2] == request.headers.get(hdrs.HOST)
    return is_own and request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")


def _header_token(request: web.Request) -> str:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _host(request: web.Request) -> str:
    """The host that the caller addressed."""
    values = request.headers.getall(hdrs.HOST, [])
    match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise ApiError(400, "invalid-request", "The header Host must be a host name and a port")
    return (match[1] or match[2]).lower()
