"""Which items of a dataset count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scrapy_apify_rq.backends.apify.valid_items import ValidItems
from scrapy_apify_rq.entries.dataset_form import About


def pushed(run: str, turn: int, *numbers: int, done: int = 0, **about: object) -> list[About]:
    """The items of one turn, of entry "e" if no other is named."""
    about = {"entry": "e", **about}
    return [
        About(queue="q", run=run, turn=turn, number=number, done=done, **about)  # type: ignore[arg-type]
        for number in numbers
    ]


CASES = {
    "a push whose answer was lost": (
        [*pushed("a", 1, 0, 1), *pushed("a", 1, 0, 1)],
        {"0": "a:1"},
        ["a1.0", "a1.1"],
    ),
    "killed before the ack, and not crawled since": (pushed("a", 1, 0, 1), {}, []),
    "killed before the ack, and crawled again": (
        [*pushed("a", 1, 0, 1, 2), *pushed("b", 1, 0, 1)],
        {"0": "b:1"},
        ["b1.0", "b1.1"],
    ),
    "killed before the ack, and pushed late": (
        [*pushed("b", 1, 0), *pushed("a", 1, 0)],
        {"0": "b:1"},
        ["b1.0"],
    ),
    "killed before the ack, and tried twice since": (
        [*pushed("a", 1, 0), *pushed("b", 1, 0, retry=1)],
        {"1": "b:1"},
        ["b1.0"],
    ),
    "killed twice": ([*pushed("a", 1, 0), *pushed("b", 1, 0)], {}, []),
    "tried again by Scrapy's own retry": (
        [*pushed("a", 1, 0), *pushed("a", 2, 0, 1, retry=1)],
        {"0": "a:1", "1": "a:2"},
        ["a1.0", "a2.0", "a2.1"],
    ),
    "the retry is not acked": (
        [*pushed("a", 1, 0), *pushed("a", 2, 0, retry=1)],
        {"0": "a:1"},
        ["a1.0"],
    ),
    "known to be acked by what came later": (
        [*pushed("a", 1, 0), *pushed("a", 2, 0, done=2, entry="other")],
        None,
        ["a1.0", "a2.0"],
    ),
    "acked, then killed in the middle of another visit": (
        [*pushed("a", 1, 0, 1), *pushed("a", 2, 0, done=2, entry="x"), *pushed("b", 1, 0)],
        {"0": "a:1"},
        ["a1.0", "a1.1", "a2.0"],
    ),
    "acked, and another program has replaced the entry": (
        [*pushed("a", 1, 0), *pushed("a", 2, 0, done=2, entry="x"), *pushed("b", 1, 0)],
        {},
        ["a1.0", "a2.0"],
    ),
    "the entry was deleted": (pushed("a", 1, 0), None, ["a1.0"]),
    "without an entry": (
        [
            *pushed("a", 0, 0, entry=None, key="start"),
            *pushed("b", 0, 0, entry=None, key="start"),
            *pushed("b", 0, 0, entry=None, key="other"),
        ],
        None,
        ["a0.0", "b0.0"],
    ),
}


@pytest.fixture
def valid() -> Iterator[ValidItems]:
    valid = ValidItems()
    yield valid
    valid.close()


@pytest.mark.parametrize("case", CASES)
def test_each_item_counts_once(valid: ValidItems, case: str) -> None:
    items, named, expected = CASES[case]
    for item in items:
        valid.note(item)
    others = {"0": "a:2"}
    valid.settle({id: named if id == "e" else others for id in valid.open_entries()})
    found = [f"{item.run}{item.turn}.{item.number}" for item in items if valid.counts(item)]
    assert found == expected
