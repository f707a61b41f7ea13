"""The input schema that a spider's arguments make."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from scrapy import Spider

from scrapy_apify_rq.actor.input_fields import FIELDS
from scrapy_apify_rq.actor.input_schema import input_schema
from scrapy_apify_rq.actor.spider_input import SpiderInput
from tests.support.command_line import rq
from tests.support.process_spiders import Run
from tests.support.queues import Queue
from tests.support.typed_spider import Typed


class Unreadable(Typed):
    """With a hint that nobody can read."""

    def __init__(self, depth: Missing, words: int = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__("")


class OddDefaults(Spider):
    """Which JSON cannot hold."""

    def __init__(self, ratio: float = float("nan"), days: list = [date(2026, 1, 1)]) -> None: ...  # type: ignore[type-arg]  # noqa: B006


class Nothing(Spider):
    async def start(self) -> Any:
        yield


def kinds(spider: type[Spider]) -> dict[str, Any]:
    properties = input_schema(spider, "title")["properties"]
    for one in properties.values():
        assert {"title", "type", "description"} <= one.keys()
    return {name: one["type"] for name, one in properties.items() if name not in FIELDS}


def test_types_are_those_of_the_hints() -> None:
    schema = input_schema(Typed, "A title")
    assert (schema["title"], schema["required"]) == ("A title", ["category"])
    assert schema["properties"].keys() >= FIELDS.keys()
    assert kinds(Typed) == {
        "startUrls": "array",
        "category": "string",
        "plain": "string",
        "depth": "integer",
        "ratio": "number",
        "fast": "boolean",
        "words": "array",
        "mapping": "object",
        "rows": "array",
        "order": "string",
        "either": "string",
        "language": "string",
    }
    found = schema["properties"]
    assert (found["words"]["editor"], found["words"]["nullable"]) == ("stringList", True)
    assert (found["rows"]["editor"], found["order"]["enum"]) == ("json", ["up", "down"])
    assert found["depth"]["default"] == 3
    assert found["startUrls"]["prefill"] == [{"url": "https://a.example/"}]
    assert kinds(Unreadable) == {"startUrls": "array", "depth": "string", "words": "string"}
    assert "required" not in input_schema(Nothing, "")
    assert kinds(Nothing) == {}
    odd = input_schema(OddDefaults, "")["properties"]
    assert not [name for name in ("ratio", "days") if "default" in odd[name]]


def test_its_defaults_are_a_valid_input() -> None:
    properties = input_schema(Typed, "")["properties"]
    defaults = {name: one["default"] for name, one in properties.items() if "default" in one}
    given = SpiderInput(Typed, {**defaults, "category": "c"})
    assert (given.arguments["depth"], given.arguments["order"]) == (3, "up")


async def test_command(queue: Queue, tmp_path: Path) -> None:
    settings = {"SPIDER_MODULES": [Run.__module__], "BOT_NAME": "bot"}
    file = tmp_path / ".actor" / "input_schema.json"
    words = ("input-schema", "--spider", Run.name)
    done = await rq(queue, *words, "-o", str(file), settings=settings)
    assert (done.code, done.out) == (0, "")
    assert json.loads(file.read_text()) == input_schema(Run, f"Input of {Run.name}")
    assert "site" in json.loads(file.read_text())["properties"]
    unknown = await rq(queue, "input-schema", "--spider", "nobody", settings=settings)
    assert unknown.code == 2
    assert "there is no spider 'nobody' here" in unknown.err
