"""The schedulers that are compared, and the settings that each of them needs.

A contestant's name may end in ``@`` and the round trip to its queue in milliseconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TOKEN = "benchmark-token"


@dataclass(frozen=True)
class Place:
    """Where one crawl stores its requests. No other crawl has used it."""

    folder: Path
    queue: str
    """The name of a queue of the API; it exists."""
    queue_id: str
    api: str
    redis: str


@dataclass(frozen=True)
class Kind:
    title: str
    settings: Callable[[Place], dict[str, Any]]
    environ: Callable[[Place], dict[str, str]] = lambda _: {}
    remote: bool = False
    """Each call to its queue takes a round trip."""
    blocks: bool = False
    """It waits for its queue in Scrapy's thread, so it gets fewer pages to crawl."""
    package: str | None = None
    program: str | None = None

    def missing(self) -> str | None:
        """Why it cannot run on this machine, or None if it can."""
        if self.program and shutil.which(self.program) is None:
            return f"{self.program} is not in PATH"
        try:
            version(self.package or "scrapy")
        except PackageNotFoundError:
            return f"{self.package} is not installed"
        return None


def _embedded(place: Place) -> dict[str, Any]:
    return {
        "ADDONS": {"scrapy_apify_rq.Addon": 500},
        "APIFY_RQ_STORAGE_DIR": str(place.folder),
        "APIFY_RQ_NAME": place.queue,
    }


def _api(place: Place) -> dict[str, Any]:
    return {**_embedded(place), "APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": place.api}


def _apify(scheduler: str) -> dict[str, Any]:
    return {
        "SCHEDULER": f"benchmarks.rivals.{scheduler}",
        "LOG_LEVEL": "ERROR",  # hides the warning that it does not run on the platform
    }


def _apify_environ(place: Place) -> dict[str, str]:
    return {
        "APIFY_TOKEN": TOKEN,
        "APIFY_API_BASE_URL": place.api,
        "ACTOR_DEFAULT_REQUEST_QUEUE_ID": place.queue_id,
    }


def _redis(place: Place) -> dict[str, Any]:
    return {
        "SCHEDULER": "scrapy_redis.scheduler.Scheduler",
        "LOG_LEVEL": "ERROR",  # hides Scrapy's deprecation warnings
        "DUPEFILTER_CLASS": "scrapy_redis.dupefilter.RFPDupeFilter",
        "SCHEDULER_FLUSH_ON_START": True,
        "REDIS_URL": place.redis,
    }


KINDS = {
    "stock": Kind("Scrapy, in memory", lambda _: {}),
    "stock-frozen": Kind(
        "Scrapy, in memory, gc.freeze()",
        lambda _: {"EXTENSIONS": {"benchmarks.meter.Meter": 0, "benchmarks.frozen.Freeze": 0}},
    ),
    "jobdir": Kind("Scrapy, JOBDIR", lambda place: {"JOBDIR": str(place.folder)}),
    "embedded-unsaved": Kind(
        "scrapy-apify-rq, embedded, items not saved",
        lambda place: {**_embedded(place), "APIFY_RQ_ITEMS": False},
    ),
    "embedded": Kind("scrapy-apify-rq, embedded", _embedded),
    "api": Kind("scrapy-apify-rq, API", _api, remote=True),
    "apify-single": Kind(
        "apify.scrapy, single",
        lambda _: _apify("Single"),
        _apify_environ,
        remote=True,
        blocks=True,
        package="apify",
    ),
    "apify-shared": Kind(
        "apify.scrapy, shared",
        lambda _: _apify("Shared"),
        _apify_environ,
        remote=True,
        blocks=True,
        package="apify",
    ),
    "scrapy-redis": Kind(
        "scrapy-redis",
        _redis,
        remote=True,
        blocks=True,
        package="scrapy-redis",
        program="redis-server",
    ),
}
DEFAULT = (
    *("stock", "stock-frozen", "jobdir", "embedded", "api@0", "api@10", "api@50", "api@200"),
    *("apify-single@0", "apify-single@50", "apify-shared@50", "scrapy-redis@0", "scrapy-redis@50"),
)
WITH_ITEMS = ("stock", "embedded-unsaved", "embedded")
QUICK = ("jobdir", "embedded", "api@50", "apify-single@10", "scrapy-redis@0")


@dataclass(frozen=True)
class Contestant:
    name: str
    kind: Kind
    latency: float
    """The round trip to its queue, in seconds."""

    @property
    def is_slow(self) -> bool:
        """Whether a crawl of a few thousand pages would take very long."""
        return self.kind.blocks and (self.latency > 0 or self.kind.package == "apify")

    @property
    def title(self) -> str:
        at = f", {self.latency * 1000:g} ms" if self.kind.remote else ""
        return self.kind.title + at


def contestant(name: str) -> Contestant:
    """Look up a contestant by name. Raises ValueError if there is none."""
    kind, _, latency = name.partition("@")
    if kind not in KINDS:
        raise ValueError(f"{name}: no such contestant; use one of {', '.join(KINDS)}")
    return Contestant(name, KINDS[kind], float(latency or 0) / 1000)
