"""Sends requests through the proxy of the input or of ``APIFY_RQ_PROXY``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from scrapy import Request
from scrapy.exceptions import NotConfigured

from scrapy_apify_rq.actor.proxy import Proxies
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler

_SETTING = "APIFY_RQ_PROXY"


class ProxyMiddleware:
    """Sets ``meta["proxy"]`` where neither the project nor the environment has set it.

    It comes after Scrapy's ``HttpProxyMiddleware``, so that the credentials never are in ``meta``:
    only the header has them, which Scrapy does not send to the site, and which we do not store.
    """

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        config = Config.from_settings(crawler.settings, os.environ, None)
        configuration = config.proxy
        if configuration is None:
            raise NotConfigured
        password = _password(config) if configuration.uses_apify else ""
        name = getattr(crawler.spider or crawler.spidercls, "name", "")
        return cls(
            Proxies(
                configuration,
                address=config.run.proxy_address,
                password=password,
                crawl=config.run.id or f"{crawler.settings['BOT_NAME']}/{name}",
            )
        )

    def process_request(self, request: Request) -> None:
        meta = request.meta
        # A retry has what its first attempt got from here.
        if "proxy" in meta and meta["proxy"] not in self._proxies.addresses:
            return
        proxy = self._proxies.choose(meta.get("cookiejar"))
        meta["proxy"] = proxy.address
        if proxy.authorization is None:
            request.headers.pop(b"Proxy-Authorization", None)
        else:
            request.headers[b"Proxy-Authorization"] = proxy.authorization


def _password(config: Config) -> str:
    """The password of the account: from the environment, else from the API."""
    if config.run.proxy_password:
        return config.run.proxy_password
    cure = "set the environment variable APIFY_PROXY_PASSWORD, or APIFY_TOKEN"
    if config.token is None:
        raise ConfigError(f"{_SETTING}: Apify Proxy needs a password: {cure}")
    # Imported late: on the platform, the environment has it.
    from scrapy_apify_rq.backends.apify import blocking

    url = f"{config.api_base_url}/v2/users/me"
    try:
        body = blocking.get(url, what="The password of Apify Proxy", token=config.token)
        user: Any = json.loads(body or b"{}")
        password = user["data"]["proxy"]["password"]
    except BackendError as error:
        raise ConfigError(f"{_SETTING}: {error}; {cure}") from None
    except (ValueError, KeyError, TypeError):
        password = None
    if not isinstance(password, str) or not password:
        raise ConfigError(f"{_SETTING}: this account has no password for Apify Proxy; {cure}")
    return password
