"""Fixtures of all crawls."""

from __future__ import annotations

import pytest

from scrapy_apify_rq import identity


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a queue that nobody has named takes 50 ms, so that it betrays no arguments."""
    monkeypatch.setattr(identity, "_ROUNDS", 1)
