"""Each setting is declared once, and the two that came with limits in bytes."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scrapy.settings import Settings

from scrapy_apify_rq.config import _DECLARED, DEFAULTS, Config, Setting
from scrapy_apify_rq.errors import ConfigError


def read(**settings: object) -> Config:
    return Config.from_settings(Settings(settings), {}, "spider")


def test_each_field_says_once_how_it_is_read() -> None:
    assert [item.name for item in dataclasses.fields(Config)] == list(_DECLARED)
    names = [item.name for item in _DECLARED.values() if isinstance(item, Setting)]
    assert names == list(DEFAULTS)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("value", "megabytes"), [(1, 1), ("64", 64), (None, 64), (2048, 2048)])
def test_memory_is_given_in_megabytes_and_used_in_bytes(value: object, megabytes: int) -> None:
    assert read(APIFY_RQ_MEMORY_MB=value).memory == megabytes * 2**20


@pytest.mark.parametrize("value", [0, -1, 0.5, "1.5", "64 MB", True, math.inf])
def test_a_wrong_memory_is_refused(value: object) -> None:
    message = r"APIFY_RQ_MEMORY_MB = .*: write a whole number of at least 1, for example 64"
    with pytest.raises(ConfigError, match=message):
        read(APIFY_RQ_MEMORY_MB=value)


def test_the_garbage_collector_is_left_alone_unless_asked() -> None:
    assert read().gc_freeze is False
    assert read(APIFY_RQ_GC_FREEZE="1").gc_freeze is True
    with pytest.raises(ConfigError, match="APIFY_RQ_GC_FREEZE = 'yes': write True or False"):
        read(APIFY_RQ_GC_FREEZE="yes")


def test_without_the_name_of_a_spider_there_is_no_default_queue() -> None:
    config = Config.from_settings(Settings({"BOT_NAME": "bot"}), {}, None)
    assert (config.queue_id, config.queue_name) == (None, None)
    config = Config.from_settings(Settings({"BOT_NAME": "bot"}), {}, "spider")
    assert (config.queue_id, config.queue_name) == (None, "bot-spider")
