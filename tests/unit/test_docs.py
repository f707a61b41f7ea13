"""The README documents every setting, stat, closing reason and public name, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import scrapy_apify_rq
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.crawl.duplicates import EACH_RUN
from tests.support.readme import commands, section

PACKAGE = Path(scrapy_apify_rq.__file__).parent
SOURCE = "".join(file.read_text() for file in PACKAGE.rglob("*.py"))


def test_settings_table_has_every_setting_in_order_with_its_default() -> None:
    rows = re.findall(r"^\| `(APIFY_\w+)` \|(?: `([^`]+)` \|)?", section("Settings"), re.MULTILINE)
    assert [name for name, _ in rows] == list(DEFAULTS)
    shown = {name: default for name, default in rows if default}
    assert len(shown) >= 15
    assert shown == {name: repr(DEFAULTS[name]).replace("'", '"') for name in shown}


def test_every_stat_is_documented() -> None:
    stat = r"((?:apify_rq|scheduler|dupefilter)/[\w/]+)"
    documented = set(re.findall(rf"`{stat}`", section("Stats")))
    # RFPDupeFilter counts that one.
    assert documented - {"dupefilter/filtered"} == set(re.findall(rf'"{stat}"', SOURCE))
    assert "`apify_rq/api/calls/{endpoint}`" in section("Stats")


def test_every_closing_reason_is_documented() -> None:
    used = set(re.findall(r'"(apify_rq_\w+)"', SOURCE)) - {EACH_RUN}
    assert used == set(re.findall(r"`(apify_rq_\w+)`", section("Stats")))


def test_public_names_are_documented() -> None:
    names = scrapy_apify_rq.__all__
    assert names == sorted(names)
    readme = section("scrapy-apify-rq")
    assert [name for name in names if f"scrapy_apify_rq.{name}" not in readme] == []


def test_commands_to_try_it_and_to_test_it_are_one_line_each() -> None:
    assert [len(commands(title)) for title in ("Try it", "Work on it")] == [1, 1]
