"""Saved items as a dataset holds them: what people see, and what comes back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from scrapy import Field, Item

from scrapy_apify_rq.entries.dataset_form import FIELD, About, about_item, from_dataset, to_dataset
from scrapy_apify_rq.entries.names import Names
from scrapy_apify_rq.entries.saved_items import ItemCodec

ABOUT = About(queue="queue", run="run", entry="entry", turn=2, number=3)
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Thing(Item):
    name = Field()
    price = Field()


CODEC = ItemCodec(Names(own=("tests",)))


@pytest.mark.parametrize(
    ("item", "seen"),
    [
        ({}, {}),
        ({"name": "x", "tags": ["a"]}, {"name": "x", "tags": ["a"]}),
        (Thing(name="x", price=1.5), {"name": "x", "price": 1.5}),
        (Thing(name=b"x", price=10.0), {"name": "x", "price": 10}),
        (
            {"a": (1, 2), "b": {"c": [{3}]}, "d": 2**60, "e": float("nan"), "f": "\ud800"},
            {"a": [1, 2], "b": {"c": [[3]]}, "d": 2**60, "e": None, "f": "?"},
        ),
        (
            {"at": WHEN, "for": timedelta(1), "cost": Decimal("1.10"), "in": PurePosixPath("/x")},
            {"at": WHEN.isoformat(), "for": 86400, "cost": "1.10", "in": "/x"},
        ),
        ({"by": {1: {"x": 1.0}}}, {"by": {"1": {"x": 1}}}),
        ({"by": {"$odd": 1}}, {"by": {"$odd": 1}}),
        ({1: 2}, {}),
        ({FIELD: 1, "a": (1,)}, {"a": [1]}),
        ({"a": f'a text with "{FIELD}" and "$tuple"'}, None),
    ],
)
def test_items_are_seen_and_come_back(item: Any, seen: dict[str, Any] | None) -> None:
    text = CODEC.write(item)
    # JavaScript writes 10.0 as 10, which is what the platform may do.
    stored = json.loads(json.dumps(json.loads(to_dataset(text, ABOUT))).replace(".0,", ","))
    about = about_item(stored)
    assert about is not None
    assert (about.queue, about.entry, about.turn, about.number) == ("queue", "entry", 2, 3)
    assert {name: value for name, value in stored.items() if name != FIELD} == (
        item if seen is None else seen
    )
    assert json.loads(from_dataset(stored, about)) == json.loads(text)


@pytest.mark.parametrize("item", [None, 1, {}, {FIELD: None}, {FIELD: {"queue": 1}}])
def test_items_of_others(item: Any) -> None:
    assert about_item(item) is None
