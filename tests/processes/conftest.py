"""What tests of processes share."""

from __future__ import annotations

import pytest

from scrapy_apify_rq.backends.apify.queue import ApifyBackend


@pytest.fixture(autouse=True)
def _short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crawls that go on in the test's process wait as briefly as the processes themselves."""
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 0.2)
