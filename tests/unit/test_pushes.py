"""Pushes of many pages' items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from scrapy_apify_rq.backends.apify import pushes
from scrapy_apify_rq.backends.apify.pushes import Pushes


class Dataset:
    """Takes pushes, one when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, items: Sequence[bytes]) -> None:
        self.calls.append([*items])
        await self.go.wait()
        if self.error is not None:
            raise self.error


def begin(pushes: Pushes, *items: bytes) -> list[asyncio.Task[None]]:
    return [asyncio.ensure_future(pushes.push([item])) for item in items]


@pytest.mark.virtual_time
async def test_one_push_takes_what_waits() -> None:
    dataset = Dataset()
    pushes = Pushes(dataset.send)
    first = begin(pushes, b"1")
    await asyncio.sleep(0.01)
    later = begin(pushes, b"2", b"3", b"4")
    await asyncio.sleep(1)
    assert not any(task.done() for task in [*first, *later])
    dataset.go.set()
    await asyncio.gather(*first, *later)
    assert dataset.calls == [[b"1"], [b"2", b"3", b"4"]]


@pytest.mark.virtual_time
async def test_another_one_sends_if_the_first_is_cancelled() -> None:
    dataset = Dataset()
    tasks = begin(Pushes(dataset.send), b"1", b"2", b"3")
    await asyncio.sleep(1)
    tasks[0].cancel()
    await asyncio.sleep(1)
    dataset.go.set()
    await asyncio.gather(*tasks[1:])
    assert dataset.calls == [[b"1", b"2", b"3"]] * 2


@pytest.mark.virtual_time
async def test_all_hear_of_an_error() -> None:
    dataset = Dataset()
    dataset.error = OSError()
    dataset.go.set()
    tasks = begin(Pushes(dataset.send), b"1", b"2")
    assert await asyncio.gather(*tasks, return_exceptions=True) == [dataset.error] * 2
    assert len(dataset.calls) == 1


@pytest.mark.virtual_time
async def test_no_push_is_longer_than_the_api_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushes, "PAYLOAD_LIMIT", 10)
    dataset = Dataset()
    dataset.go.set()
    await Pushes(dataset.send).push([b"1234", b"1234", b"1", b"x" * 20, b"1"])
    assert dataset.calls == [[b"1234", b"1234"], [b"1"], [b"x" * 20], [b"1"]]
