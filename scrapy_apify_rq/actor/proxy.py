"""Which proxy a request goes through: Apify Proxy, or one of one's own.

https://docs.apify.com/platform/proxy/usage: what Apify Proxy is to do is written into the user
name, as ``groups-RESIDENTIAL,session-a1b2,country-DE``. The password is the account's.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import cycle
from typing import Final

from scrapy_apify_rq.proxy_configuration import Proxy, ProxyConfiguration, basic

# Digits of a session's name. The platform takes up to 50 characters.
_SESSION: Final = 20
_AUTO: Final = "auto"


class Proxies:
    """Chooses a proxy for each request of a crawl.

    Requests with the same ``cookiejar`` go through the same proxy in the same session, so that a
    site sees one visitor; a crawl that is resumed makes the same choice. Others change with each
    request.
    """

    def __init__(
        self, configuration: ProxyConfiguration, *, address: str, password: str, crawl: str
    ) -> None:
        """``address`` and ``password`` are those of Apify Proxy; ``crawl`` tells crawls apart."""
        self._configuration = configuration
        self._address = address
        self._password = password
        self._crawl = crawl
        self._next = cycle(configuration.own)

    @property
    def addresses(self) -> frozenset[str]:
        own = frozenset(proxy.address for proxy in self._configuration.own)
        return own or frozenset((self._address,))

    def choose(self, cookiejar: object | None) -> Proxy:
        session = None
        if cookiejar is not None:
            text = f"{self._crawl}\n{type(cookiejar).__name__} {cookiejar}"
            session = sha256(text.encode(errors="surrogatepass")).hexdigest()[:_SESSION]
        if own := self._configuration.own:
            return next(self._next) if session is None else own[int(session, 16) % len(own)]
        return Proxy(self._address, basic(self._user(session), self._password))

    def _user(self, session: str | None) -> str:
        parts = []
        if self._configuration.groups:
            parts.append(f"groups-{'+'.join(self._configuration.groups)}")
        if session is not None:
            parts.append(f"session-{session}")
        if self._configuration.country is not None:
            parts.append(f"country-{self._configuration.country}")
        return ",".join(parts) or _AUTO
