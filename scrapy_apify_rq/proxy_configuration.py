"""What ``APIFY_RQ_PROXY`` and the input's ``proxyConfiguration`` say: which proxies to use.

https://docs.apify.com/platform/actors/development/actor-definition/input-schema/specification/v1#proxy
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.setting_readers import Source

_GROUP: Final = re.compile(r"[\w~]+", re.ASCII)
_COUNTRY: Final = re.compile("[A-Z]{2}")
_WORDS: Final = {"": None, "none": None, "true": True, "1": True, "false": False, "0": False}
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


class Proxy(NamedTuple):
    """Where to send a request, and with which credentials, apart from each other."""

    address: str
    authorization: bytes | None
    """The header ``Proxy-Authorization``."""

    def __repr__(self) -> str:
        return f"Proxy({self.address})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfiguration:
    """What the input's ``proxyConfiguration`` or ``APIFY_RQ_PROXY`` says, checked."""

    uses_apify: bool
    groups: tuple[str, ...] = ()
    country: str | None = None
    own: tuple[Proxy, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, value: Any, name: str) -> ProxyConfiguration | None:
        """None: no proxy. Raises ConfigError, which names the field and shows no password."""
        if value is None or value is False:
            return None
        if value is True:
            return cls(uses_apify=True)
        if not isinstance(value, dict):
            raise ConfigError(
                f'{name}: write an object such as {{"useApifyProxy": true}} or'
                ' {"proxyUrls": ["http://user:password@host:8000"]}'
            )
        own = _own(value.get("proxyUrls"), f"{name}.proxyUrls")
        uses_apify = value.get("useApifyProxy") or False
        if not isinstance(uses_apify, bool):
            raise ConfigError(f"{name}.useApifyProxy: write true or false")
        if uses_apify and own:
            raise ConfigError(
                f"{name}: useApifyProxy and proxyUrls exclude each other; remove one of them"
            )
        if not uses_apify and not own:
            return None
        country = value.get("apifyProxyCountry") or None
        if country is not None and not (isinstance(country, str) and _COUNTRY.fullmatch(country)):
            raise ConfigError(f"{name}.apifyProxyCountry: write a code of two letters such as DE")
        return cls(
            uses_apify=uses_apify,
            groups=_groups(value.get("apifyProxyGroups"), f"{name}.apifyProxyGroups"),
            country=country,
            own=own,
        )


def _groups(value: Any, name: str) -> tuple[str, ...]:
    groups = value or []
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, str) and _GROUP.fullmatch(group) for group in groups
    ):
        raise ConfigError(f"{name}: write a list of proxy groups such as RESIDENTIAL")
    return tuple(groups)


def _own(value: Any, name: str) -> tuple[Proxy, ...]:
    urls = value or []
    if not isinstance(urls, list | tuple):
        raise ConfigError(f'{name}: write a list such as ["http://user:password@host:8000"]')
    return tuple(_proxy_at(url, f"{name}[{number}]") for number, url in enumerate(urls))


def _proxy_at(url: Any, name: str) -> Proxy:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in _SCHEMES:
        # Without the address, which may hold a password.
        raise ConfigError(f"{name}: write an address such as http://user:password@host:8000")
    shown = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}"
    if parts.username is None:
        return Proxy(address, None)
    return Proxy(address, basic(unquote(parts.username), unquote(parts.password or "")))


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def read(source: Source, name: str) -> ProxyConfiguration | None:
    """The setting. The command line has only texts: JSON, or True and False."""
    value = source.get(name)
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return ProxyConfiguration.of(value, name)
