"""Who may call: whoever sends the token. Without one, programs on this machine, but no web page.

Any web page in a browser on this machine can send us calls: with forms and images, from a host name
that resolves to 127.0.0.1, or by a link that somebody follows. It cannot set the header
Authorization, nor hide that it comes from a page, nor call itself localhost.
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
    """Checks calls against the server's ``token``, and ``host``, the address it listens on."""

    def __init__(self, token: str | None, host: str) -> None:
        self._token = token
        self._host = host.lower()

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
        if not token:
            raise ApiError(401, "token-not-provided", "Authentication token was not provided")
        # Bytes that are not UTF-8 arrive as lone surrogates.
        if not hmac.compare_digest(token.encode(errors="surrogatepass"), self._token.encode()):
            raise ApiError(
                401,
                "user-or-token-not-found",
                "User was not found or authentication token is not valid",
            )

    def _refuse_web_pages(self, request: web.Request, host: str) -> None:
        site = request.headers.get("Sec-Fetch-Site", "none")
        is_own = host == self._host or is_loopback(host)
        if site != "none" or hdrs.ORIGIN in request.headers or not is_own:
            raise ApiError(
                403,
                "insufficient-permissions",
                "Web pages may not use this server, and its host name must be localhost or its IP"
                " address, unless it is started with --token",
            )


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
