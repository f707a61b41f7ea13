"""Which fields of an Actor's input mean something to Scrapy. ``docs/actors.md`` has the same table.

The names are those of Apify's own crawlers. A field is not one of these for a spider whose
``__init__`` has a parameter of that name: the spider gets it as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.proxy_configuration import ProxyConfiguration

START_URLS: Final = "startUrls"


class InputField(NamedTuple):
    """A field that sets one of Scrapy's settings, or ours."""

    setting: str
    check: Callable[[str, Any], Any]
    """Return the setting's value, or raise ConfigError that names the field."""


def _whole(minimum: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        # 3.0 is what some programs make of 3; True is an int to Python only.
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not is_whole or isinstance(value, bool):
            raise ConfigError(f"{name}: write a whole number of at least {minimum}")
        if value < minimum:
            raise ConfigError(f"{name} = {value}: write a whole number of at least {minimum}")
        return int(value)

    return check


def _proxy(name: str, value: Any) -> Any:
    ProxyConfiguration.of(value, name)
    return value


FIELDS: Final = {
    "maxRequestsPerCrawl": InputField("CLOSESPIDER_PAGECOUNT", _whole(0)),
    "maxConcurrency": InputField("CONCURRENT_REQUESTS", _whole(1)),
    "maxRequestRetries": InputField("RETRY_TIMES", _whole(0)),
    "proxyConfiguration": InputField("APIFY_RQ_PROXY", _proxy),
}
