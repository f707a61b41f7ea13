"""Callbacks come back as methods of the spider; nothing else can be one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import scrapy
from scrapy import Request

from scrapy_apify_rq.entries.callbacks import SpiderMethods
from scrapy_apify_rq.errors import CodecError, ConfigError
from tests.support.codec_classes import SPIDER, Holder, MethodsSpider
from tests.support.conversion import URL, apify, converter, encoded, own, refusal, restarted
from tests.support.exact_values import ODD


@pytest.mark.parametrize("name", ["alias", "renamed", "instance_alias", "helper_method"])
def test_a_method_under_another_name(name: str) -> None:
    restarted(Request(URL, getattr(SPIDER, name)))


def test_a_private_method() -> None:
    request = SPIDER.private_request(URL)
    assert restarted(request).callback == request.callback
    label = encoded(request).user_data["label"]
    assert label == "_MethodsSpider__private"


NO_METHODS: list[Any] = [lambda response: None, functools.partial(SPIDER.parse), print]
NO_METHODS += [scrapy.http.request.NO_CALLBACK, Holder().method, SPIDER.of_class, SPIDER.static]
NO_METHODS += [MethodsSpider().parse, MethodsSpider().failed]


@pytest.mark.parametrize("function", NO_METHODS, ids=range(9))
def test_what_is_no_method_of_the_spider_is_refused(function: Any) -> None:
    a_converter = converter()
    # Its own method first: what was found for one object must not answer for another.
    encoded(Request(URL, SPIDER.parse, errback=SPIDER.failed), a_converter)
    for request in (Request(URL, function), Request(URL, errback=function)) * 2:
        with pytest.raises(CodecError, match="is not a method of spider 'spider'"):
            encoded(request, a_converter)
        assert function in (request.callback, request.errback)


class Nameless(scrapy.Spider):
    def __init__(self) -> None: ...


def test_spiders_with_odd_names() -> None:
    with pytest.raises(CodecError, match="spider 'Nameless' has no method 'missing'"):
        SpiderMethods(Nameless()).get("missing")
    spider = MethodsSpider()
    vars(spider)[ODD] = Holder().method
    with pytest.raises(CodecError, match="is not a method of spider"):
        SpiderMethods(spider).name_of(vars(spider)[ODD])


HARMFUL = ["tempting", "of_class", "static", "__init__", "__class__", "__private", "Inner"]
HARMFUL += ["Inner.method", "parse.__func__", "instance_alias.__call__", "from_crawler"]
HARMFUL += ["logger", "start_urls", "name"]


@pytest.mark.parametrize("name", HARMFUL)
def test_a_name_of_what_is_no_method(name: str) -> None:
    blobs = ({"v": 1, "callback": name}, {"v": 1, "errback": name})
    for entry in (*map(own, blobs), apify(callback=name)):
        assert "has no method" in refusal(entry)
    with pytest.raises(ConfigError, match=r"APIFY_RQ_CALLBACKS\['X'\].*has no method"):
        converter(callbacks={"X": name})
