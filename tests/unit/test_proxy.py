"""Which proxy a request goes through, and where its password is."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.settings import Settings

from scrapy_apify_rq.actor.proxy_middleware import ProxyMiddleware
from scrapy_apify_rq.errors import ConfigError
from tests.support.api_calls import error
from tests.support.queues import ServedQueue

PASSWORD = "apify_proxy_SECRET"
APIFY = "http://proxy.apify.com:8000"


def middleware(proxy: Any, **settings: Any) -> ProxyMiddleware:
    values = Settings({"BOT_NAME": "bot", "APIFY_RQ_PROXY": proxy, **settings})
    return ProxyMiddleware.from_crawler(Crawler(Spider, values))


def sent(through: ProxyMiddleware, **meta: Any) -> tuple[Any, str]:
    """The proxy of a request with this ``meta``, and its user and password."""
    request = Request("https://a.example/", meta=meta)
    through.process_request(request)
    header = request.headers.get("Proxy-Authorization", b"").removeprefix(b"Basic ")
    assert "SECRET" not in str(request.meta)
    return request.meta.get("proxy"), base64.b64decode(header).decode()


def test_apify_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIFY_PROXY_PASSWORD", PASSWORD)
    for on in (True, "True", "1", '{"useApifyProxy": true}', {"useApifyProxy": True}):
        assert sent(middleware(on)) == (APIFY, f"auto:{PASSWORD}")
    groups = {"useApifyProxy": True, "apifyProxyGroups": ["RESIDENTIAL", "B"]}
    through = middleware({**groups, "apifyProxyCountry": "DE"})
    assert sent(through) == (APIFY, f"groups-RESIDENTIAL+B,country-DE:{PASSWORD}")
    sessions = [sent(through, cookiejar=jar)[1] for jar in (1, 1, "1", 2)]
    assert (
        sessions[0]
        == sessions[1]
        == sent(middleware(groups), cookiejar=1)[1].replace(":", ",country-DE:")
    )
    assert len({*sessions}) == 3
    assert sent(through, proxy="http://other:1") == ("http://other:1", "")
    assert sent(through, proxy=None) == (None, "")
    assert sent(through, proxy=APIFY)[1].endswith(PASSWORD)  # a retry
    monkeypatch.setenv("APIFY_PROXY_HOSTNAME", "10.0.0.1")
    monkeypatch.setenv("APIFY_PROXY_PORT", "8011")
    assert sent(middleware(on))[0] == "http://10.0.0.1:8011"


def test_proxies_of_ones_own() -> None:
    urls = ["http://user:SEC%2FRET@host:8000", "https://[::1]:1", "socks5://a.example"]
    through = middleware({"proxyUrls": urls})
    turns = [sent(through) for _ in range(4)]
    assert turns[0] == turns[3] == ("http://host:8000", "user:SEC/RET")
    assert turns[1:3] == [("https://[::1]:1", ""), ("socks5://a.example", "")]
    assert len({sent(through, cookiejar="a") for _ in range(5)}) == 1


@pytest.mark.parametrize("off", [None, False, "", {}, {"useApifyProxy": False}, {"proxyUrls": []}])
def test_no_proxy(off: Any) -> None:
    with pytest.raises(NotConfigured):
        middleware(off)


async def test_the_password_of_the_account(served: ServedQueue) -> None:
    """Where the environment lacks it, it is asked for."""
    with pytest.raises(ConfigError, match="set the environment variable APIFY_PROXY_PASSWORD"):
        middleware(True)
    answers: list[Any] = [error(502), {"proxy": {"password": PASSWORD}}, {"proxy": {}}, error(401)]

    def user(call: Any) -> Any:
        from aiohttp import web

        assert call.path == "/v2/users/me"
        answer = answers.pop(0)
        return web.json_response({"data": answer}) if isinstance(answer, dict) else answer

    served.api.before = user
    assert sent(middleware(True, **served.settings))[1] == f"auto:{PASSWORD}"
    for problem in ("has no password for Apify Proxy", "the answer is 401"):
        with pytest.raises(ConfigError, match=problem) as raised:
            middleware(True, **served.settings)
        assert served.settings["APIFY_TOKEN"] not in str(raised.value)
