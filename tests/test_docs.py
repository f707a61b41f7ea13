"""The README documents every setting, stat, closing reason and public name, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import scrapy_apify_rq
from scrapy_apify_rq.config import DEFAULTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _source() -> str:
    files = (ROOT / "scrapy_apify_rq").rglob("*.py")
    return "".join(file.read_text() for file in files)


def test_the_settings_table_holds_every_setting_in_order() -> None:
    assert re.findall(r"^\| `(APIFY_\w+)`", _section("Settings"), re.MULTILINE) == list(DEFAULTS)


def test_the_settings_table_shows_the_defaults() -> None:
    rows = re.findall(r"^\| `(APIFY_\w+)` \| `([^`]+)` \|", _section("Settings"), re.MULTILINE)
    assert len(rows) >= 15
    for name, default in rows:
        assert default == repr(DEFAULTS[name]).replace("'", '"'), name


def test_every_stat_is_documented() -> None:
    stat = r"((?:apify_rq|scheduler|dupefilter)/[\w/]+)"
    used = set(re.findall(rf'"{stat}"', _source()))
    documented = set(re.findall(rf"`{stat}`", _section("Stats")))
    assert documented - {"dupefilter/filtered"} == used  # RFPDupeFilter counts that one
    assert "`apify_rq/api/calls/{endpoint}`" in README


def test_every_closing_reason_is_documented() -> None:
    used = set(re.findall(r'"(apify_rq_\w+)"', _source()))
    assert used == set(re.findall(r"`(apify_rq_\w+)`", _section("Stats")))


def test_the_public_names_are_documented() -> None:
    names = scrapy_apify_rq.__all__
    assert names == sorted(names)
    for name in names:
        assert f"scrapy_apify_rq.{name}" in README


def test_the_commands_to_try_and_to_test_are_one_line_each() -> None:
    for text in (_section("Try it"), _section("Work on it")):
        commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        assert [command.count("\n") for command in commands] == [1]
