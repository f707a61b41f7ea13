"""The schedulers that are compared, and the settings that each of them needs.

A contestant's name may end in ``@`` and the round trip to its queue in milliseconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

TOKEN = "benchmark-token"


@dataclass(frozen=True)
class Place:
    """Where one crawl stores its requests. No other crawl has used it."""

    folder: Path
    queue: str
    queue_id: str
    """Of the queue of this name, where there is an API server: it exists."""
    api: str
    redis: str


Settings = Callable[[Place], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    title: str
    settings: Settings
    environ: Callable[[Place], dict[str, str]] = lambda _: {}
    server: Literal["api", "redis"] | None = None
    """What holds its queue: each call takes a round trip. None: the crawl's own process."""
    blocks: bool = False
    """It waits for its queue in Scrapy's thread, so it gets fewer pages to crawl."""
    requires: str = "scrapy"

    def missing(self) -> str | None:
        """Why it cannot run on this machine, or None if it can."""
        if self.server == "redis" and shutil.which("redis-server") is None:
            return "redis-server is not in PATH"
        needed = Requirement(self.requires)
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            return f"{needed.name} is not installed"
        return None if needed.specifier.contains(found) else f"it needs {needed}, not {found}"


def _with(settings: Settings, **more: Any) -> Settings:
    return lambda place: {**settings(place), **more}


def _stock(_: Place) -> dict[str, Any]:
    return {}


def _jobdir(place: Place) -> dict[str, Any]:
    return {"JOBDIR": str(place.folder)}


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


_UNSAVED = {"APIFY_RQ_ITEMS": False, "APIFY_RQ_COOKIES": False}
_SQUEUES = "scrapy.squeues."

KINDS = {
    "stock": Kind("Scrapy, in memory", _stock),
    "stock-frozen": Kind(
        "Scrapy, in memory, gc.freeze()",
        _with(_stock, EXTENSIONS={"benchmarks.meter.Meter": 0, "benchmarks.frozen.Freeze": 0}),
    ),
    "jobdir": Kind("Scrapy, JOBDIR", _jobdir),
    "jobdir-sqlite": Kind(
        "Scrapy, JOBDIR, SQLite",
        _with(
            _jobdir,
            SCHEDULER_DISK_QUEUE=_SQUEUES + "PickleLifoSQLiteQueue",
            SCHEDULER_START_DISK_QUEUE=_SQUEUES + "PickleFifoSQLiteQueue",
        ),
        requires="scrapy>=2.19",
    ),
    "embedded": Kind("embedded", _embedded),
    "embedded-unsaved": Kind("embedded, items and cookies not saved", _with(_embedded, **_UNSAVED)),
    "embedded-frozen": Kind("embedded, gc.freeze()", _with(_embedded, APIFY_RQ_GC_FREEZE=True)),
    "embedded-shared": Kind("embedded, shared", _with(_embedded, APIFY_RQ_ACCESS="shared")),
    "api": Kind("API", _api, server="api"),
    "api-unsaved": Kind("API, items and cookies not saved", _with(_api, **_UNSAVED), server="api"),
    "api-frozen": Kind("API, gc.freeze()", _with(_api, APIFY_RQ_GC_FREEZE=True), server="api"),
    "api-shared": Kind("API, shared", _with(_api, APIFY_RQ_ACCESS="shared"), server="api"),
    "apify-single": Kind(
        "apify.scrapy, single",
        lambda _: _apify("Single"),
        _apify_environ,
        server="api",
        blocks=True,
        requires="apify",
    ),
    "apify-shared": Kind(
        "apify.scrapy, shared",
        lambda _: _apify("Shared"),
        _apify_environ,
        server="api",
        blocks=True,
        requires="apify",
    ),
    "scrapy-redis": Kind(
        "scrapy-redis", _redis, server="redis", blocks=True, requires="scrapy-redis"
    ),
}


@dataclass(frozen=True)
class Contestant:
    name: str
    kind: Kind
    latency: float
    """The round trip to its queue, in seconds."""

    @property
    def is_slow(self) -> bool:
        """Whether a crawl of a few thousand pages would take very long."""
        return self.kind.blocks and (self.latency > 0 or self.kind.server == "api")

    @property
    def title(self) -> str:
        at = f", {self.latency * 1000:g} ms" if self.kind.server else ""
        return self.kind.title + at


def contestant(name: str) -> Contestant:
    """Look up a contestant by name. Raises ValueError if there is none."""
    kind, _, latency = name.partition("@")
    if kind not in KINDS:
        raise ValueError(f"{name}: no such contestant; use one of {', '.join(KINDS)}")
    return Contestant(name, KINDS[kind], float(latency or 0) / 1000)


def with_round_trips(names: Iterable[str], round_trips: Sequence[float]) -> list[str]:
    """A queue behind a server, whose name has no ``@``, takes part with each of the round trips."""
    found = []
    for name in names:
        far = "@" not in name and contestant(name).kind.server
        found += [f"{name}@{trip * 1000:g}" for trip in round_trips] if far else [name]
    return found
