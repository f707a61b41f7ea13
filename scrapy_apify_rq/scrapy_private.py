"""All that a crawl uses of Scrapy's private names: a new version of Scrapy can break one file only.

There is no public signal for "Scrapy has finished with this request", and no public call that
makes the engine ask the scheduler again. Hence ``engine._slot`` with its ``inprogress``,
``nextcall`` and ``scheduler``, and the scraper's ``slot.active`` (scrapy/core/engine.py and
scraper.py, the same from 2.16 to 2.19). Nor can a spider be closed without waiting for its
downloads, hence ``closing`` of both slots. ``verify`` refuses a Scrapy that lacks one of them.

There is no public moment between the choice of a feed's address and the first write to it, hence
``FeedExporter._start_new_batch`` (scrapy/extensions/feedexport.py).
The jars of ``CookiesMiddleware`` have a public name, which nothing documents.

Nothing keeps the arguments of ``Crawler.crawl()``, hence a look at its local variables. A crawl
that needs them and does not find them is refused, too. The module names of Scrapy's commands are
undocumented rather than private, as is that a command finds its exit status in itself, and the
arguments of the spider in ``opts.spargs``; without these, an argument that an Actor's input lacks
is reported later. The downloader's ``slots`` and ``get_slot_key``, which Scrapy's own queues use
(scrapy/pqueues.py), are guarded: a crawl without them has one line for all hosts. Of a slot, only
``active`` is used there, and here ``concurrency``, ``delay`` and ``lastseen``, too.

``scrapy rq import-jobdir`` depends on more, and no crawl on it: ``jobdir`` reads the files that
Scrapy's scheduler wrote, and the command shows its queues an idle ``engine.downloader.slots``.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from scrapy import Request, __version__
from scrapy.commands import ScrapyCommand
from scrapy.downloadermiddlewares.cookies import CookiesMiddleware
from scrapy.extensions.feedexport import FeedExporter, FeedSlot
from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from scrapy.core.engine import ExecutionEngine
    from scrapy.crawler import Crawler
    from scrapy.http.cookies import CookieJar

_NOTHING: AbstractSet[Request] = frozenset()


def verify(engine: ExecutionEngine) -> None:
    """Raise RuntimeError unless the private names that we rely on are there.

    Call it while the scheduler opens: the engine has its slot by then, the scraper not yet.
    """
    slot = getattr(engine, "_slot", None)
    scraper = getattr(engine, "scraper", None)
    known = {
        "_slot.inprogress": isinstance(getattr(slot, "inprogress", None), set),
        "_slot.nextcall.schedule": callable(
            getattr(getattr(slot, "nextcall", None), "schedule", None)
        ),
        "_slot.scheduler": hasattr(slot, "scheduler"),
        "_slot.closing": hasattr(slot, "closing"),
        "FeedExporter._start_new_batch": hasattr(FeedExporter, "_start_new_batch"),
        "scraper.slot": hasattr(scraper, "slot"),
        "scraper.slot.active": _scraper_slot_has_active(),
    }
    if missing := [name for name, is_there in known.items() if not is_there]:
        raise RuntimeError(
            f"scrapy-apify-rq does not know the engine of Scrapy {__version__}: it lacks"
            f" {', '.join(missing)}. Install a version of scrapy-apify-rq that supports it."
        )


class FeedHooks:
    """A base before ``FeedExporter`` that tells of each batch before its first write."""

    def uri_of_batch(self, feed: str, batch: int, uri: str) -> str:
        """Say where this batch goes, which Scrapy would store at ``uri``."""
        raise NotImplementedError

    def batch_begins(self, slot: FeedSlot) -> None:
        raise NotImplementedError

    def _start_new_batch(
        self, *, batch_id: int, uri: str, uri_template: str, **options: Any
    ) -> FeedSlot:
        uri = self.uri_of_batch(uri_template, batch_id, uri)
        start: Callable[..., FeedSlot] = super()._start_new_batch  # type: ignore[misc]
        slot = start(batch_id=batch_id, uri=uri, uri_template=uri_template, **options)
        self.batch_begins(slot)
        return slot


def _scraper_slot_has_active() -> bool:
    # The scraper makes its slot only after the scheduler is open.
    from scrapy.core import scraper

    slot_class = getattr(scraper, "Slot", None)
    return slot_class is not None and isinstance(getattr(slot_class(), "active", None), set)


def scheduler(crawler: Crawler) -> object:
    """The scheduler in use; None before the spider is opened and after it is closed."""
    try:
        slot = crawler.engine._slot
    except (AttributeError, RuntimeError):  # 2.16, 2.18: there is no engine yet
        return None
    return None if slot is None else slot.scheduler


def unfinished(engine: ExecutionEngine) -> tuple[AbstractSet[Request], AbstractSet[Request]]:
    """The requests in the engine's slot, and those in the scraper's.

    A request is in the first from its hand-out to the end of its item pipelines, unless its
    callback downloads it again; it is in the second from its response to that end.
    """
    slot, scraper = engine._slot, engine.scraper.slot
    return (
        _NOTHING if slot is None else slot.inprogress,
        _NOTHING if scraper is None else scraper.active,
    )


def wake(engine: ExecutionEngine) -> None:
    """Make the engine ask the scheduler soon instead of at its next heartbeat (5 seconds)."""
    if engine._slot is not None:
        engine._slot.nextcall.schedule()


def is_closing(engine: ExecutionEngine) -> bool:
    """The spider is being closed, or is closed already."""
    return engine._slot is None or engine._slot.closing is not None


def abandon(engine: ExecutionEngine) -> None:
    """Let a spider that is being closed wait no more for its downloads and callbacks."""
    for slot in (engine._slot, engine.scraper.slot):
        if slot is not None and slot.closing is not None and not slot.closing.called:
            # What ends later than this fires the new one, for which nobody waits.
            closing: Deferred[Any] = slot.closing
            slot.closing = Deferred()
            closing.callback(None)


def has_download_slots(engine: ExecutionEngine) -> bool:
    """False for a downloader of the project that works in another way."""
    downloader = engine.downloader
    return isinstance(getattr(downloader, "slots", None), dict) and callable(
        getattr(downloader, "get_slot_key", None)
    )


class Outline(Protocol):
    """What the downloader reads of a request to find its slot."""

    @property
    def url(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]: ...


def slot_key(engine: ExecutionEngine, request: Outline) -> str:
    """The name of the download slot for a request."""
    try:
        return str(engine.downloader.get_slot_key(request))  # type: ignore[arg-type]
    except ValueError:  # no URL, in somebody's own entry; it is reported when it is decoded
        return ""


def slot_active(engine: ExecutionEngine, key: str) -> int:
    """How many requests a download slot has, waiting ones included."""
    slot = engine.downloader.slots.get(key)
    return 0 if slot is None else len(slot.active)


def slot_is_full(engine: ExecutionEngine, key: str) -> bool:
    """Whether a download slot has as many requests as it downloads at a time."""
    slot = engine.downloader.slots.get(key)
    return slot is not None and len(slot.active) >= slot.concurrency > 0


def slot_is_busy(engine: ExecutionEngine, key: str) -> bool:
    """Whether a download slot has requests, or has to wait before its next one."""
    slot = engine.downloader.slots.get(key)
    if slot is None or slot.active:
        return slot is not None
    now = time.monotonic()
    if slot.lastseen > now:  # older versions of Scrapy take the time of day
        now = time.time()
    return slot.lastseen + slot.delay > now


def is_command() -> bool:
    """Whether this crawl is part of a ``scrapy`` command, and not of a script."""
    return any(_commands())


def fail_command() -> None:
    """Let the command end with exit status 1. In a script, the script decides.

    A spider that was closed for a reason of its own counts as success there.
    """
    for command in _commands():
        command.exitcode = 1


def _commands() -> Iterator[ScrapyCommand]:
    """One, or several if a command of the project runs another one."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        command = frame.f_locals.get("self")
        if isinstance(command, ScrapyCommand):
            yield command
        frame = frame.f_back


def arguments(crawler: Crawler) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with which this crawl was started; None if they cannot be found.

    Call it while the crawler makes its components. ``crawl()`` and ``crawl_async()``, which make
    the spider and then the engine, are still on the stack. The spider is no help: it may keep its
    arguments or not, and change them.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in ("crawl", "crawl_async"):
            found = frame.f_locals
            args, kwargs = found.get("args"), found.get("kwargs")
            if (
                found.get("self") is crawler
                and isinstance(args, tuple)
                and isinstance(kwargs, dict)
            ):
                return args, kwargs
        frame = frame.f_back
    return None


def command_line_arguments() -> AbstractSet[str] | None:
    """The names of the spider's arguments on the command line of ``scrapy crawl``.

    None in a script, or where they cannot be found.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found = frame.f_locals
        given = getattr(found.get("opts"), "spargs", None)
        if isinstance(found.get("self"), ScrapyCommand) and isinstance(given, dict):
            return given.keys()
        frame = frame.f_back
    return None


def cookie_jars(crawler: Crawler) -> defaultdict[Any, CookieJar] | None:
    """The jars that Scrapy fills, by ``meta["cookiejar"]``; None if it keeps no cookies.

    Raises LookupError if it keeps them in another way.
    """
    middleware = crawler.get_downloader_middleware(CookiesMiddleware)
    if middleware is None:
        return None
    jars = getattr(middleware, "jars", None)
    if not isinstance(jars, defaultdict):
        raise LookupError(f"{type(middleware).__name__} has no jars like those of Scrapy's own")
    return jars


def is_crawl(crawler: Crawler) -> bool:
    """False in ``scrapy shell``, ``fetch``, ``view``, ``parse`` and ``check``.

    They run a spider of the project on requests of their own, which do not belong in the queue. The
    shell drives the engine itself, without ``Crawler.crawl()``; the others put a ``start`` of their
    own in the place of the spider's (scrapy/commands/).
    """
    start = getattr(crawler.spidercls, "start", None)
    return crawler.crawling and not getattr(start, "__module__", "").startswith("scrapy.commands.")
