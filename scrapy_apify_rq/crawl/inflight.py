"""The requests in flight: what Scrapy has been given and has not finished.

This is their only owner. It finds out to which of them a response, an error or a new request
belongs. When Scrapy has finished with one, it gives the verdict: the entry is acked or requeued.

**Whose is it?** Scrapy does everything for one request, from the downloader middlewares to the item
pipelines, in asyncio tasks and Deferreds that copy the context (``contextvars``) in which the
request was handed out. ``take`` sets a variable there, so it names the request in flight on whose
behalf any code runs, whatever copies of requests and responses a middleware makes. The same
variable marks start requests on their way from ``start()``.

**When is it finished?** When it is neither in the engine's slot nor in the scraper's. A callback
may hand its own request to the engine again, which takes it out of the first; the second holds it
until its item pipelines are done. The verdict then waits for the requests that it led to and that
live in memory only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

from scrapy import Request

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.crawl.back_off import BackOff
from scrapy_apify_rq.crawl.flight import Flight, Stage, describe
from scrapy_apify_rq.crawl.outgoing import Outgoing, Stored
from scrapy_apify_rq.entries.converter import store_spider_errors
from scrapy_apify_rq.entries.foreign import skips_navigation
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.frontier.visit import Visit

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from scrapy.http import Response

    from scrapy_apify_rq.config import Config
    from scrapy_apify_rq.crawl.report import Report
    from scrapy_apify_rq.entries.converter import RequestConverter
    from scrapy_apify_rq.entries.models import Entry
    from scrapy_apify_rq.frontier.frontier import Frontier


class _Mark(Enum):
    START = "a start request on its way to the scheduler"


class StartItem:
    """An item of ``start()`` on its way to the pipelines. A middleware may make several of it."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._made = 0

    def next_key(self) -> str:
        """The same for the same item in each run."""
        self._made += 1
        return self._key if self._made == 1 else f"{self._key}/{self._made}"


class Origin(Enum):
    """What leads to a request again, besides a page."""

    START = "start() yields it in each run"
    NOTHING = "nothing that we know of"


Holder: TypeAlias = "Flight | StartItem | Origin | None"
"""With what an item is saved: with the verdict of a request that the queue holds; by itself, as an
item of ``start()``; by what leads to a request that lives in memory only; None for nobody's.
"""


class GivenUp(NamedTuple):
    """How many requests that live in memory only are not crawled."""

    total: int
    lost: int
    """No page that is still pending leads to these again, nor does ``start()``."""


# On whose behalf the present code runs. None: nobody's, for example an extension's.
# The reference is weak, because contexts outlive a request: a connection that is kept open holds
# the one in which it was made.
_behalf: ContextVar[ref[Flight] | _Mark | StartItem | None] = ContextVar(
    "scrapy_apify_rq_behalf", default=None
)


def mark_start_requests(are_next: bool) -> None:
    """Say whether what this task schedules from now on are start requests.

    Spider middlewares may put others in the place of the spider's; these count, too. What the code
    of ``start()`` itself hands to the engine does not.
    """
    _behalf.set(_Mark.START if are_next else None)


def mark_start_item(item: StartItem) -> None:
    """Say that what this task hands to the engine next is this item."""
    _behalf.set(item)


def is_start() -> bool:
    """Whether the present code schedules a start request."""
    return isinstance(_behalf.get(), _Mark | StartItem)


def start_item() -> StartItem | None:
    """The item of ``start()`` for which the present code runs."""
    behalf = _behalf.get()
    return behalf if isinstance(behalf, StartItem) else None


class InFlight:
    """See the module. All methods are synchronous and touch memory only."""

    def __init__(
        self,
        crawler: Crawler,
        config: Config,
        frontier: Frontier,
        converter: RequestConverter,
        report: Report,
    ) -> None:
        self._crawler = crawler
        self._fingerprint = crawler.request_fingerprinter.fingerprint
        self._retries_first = config.retry_forefront
        self._most_spider_errors = config.retry_spider_errors
        self._back_off = BackOff(config.retry_delay)
        self._frontier = frontier
        self._converter = converter
        self._report = report
        self._flights: dict[Request, Flight] = {}
        self._stored_forms: WeakKeyDictionary[Request, Stored] = WeakKeyDictionary()
        """What the queue holds of live requests that wait, where it is less than they hold."""
        self._carried: WeakKeyDictionary[Request, Outgoing] = WeakKeyDictionary()
        """Of requests that were sent, and that the meta of others holds."""
        self._visits: dict[str, Visit] = {}
        self._origins: dict[Visit, Flight | Origin] = {}
        """Of each visit that lives in memory only and is not finished: what leads to it again."""
        self._size = 0
        """Bytes of what Scrapy has, entries and live requests, about. What waits for its children
        does not count, or these could not be handed out."""
        self._most_size = config.memory // 2
        converter.stored_form = self._stored_form_in_value

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, request: Request) -> bool:
        return request in self._flights

    @property
    def visits(self) -> Mapping[str, Visit]:
        """By the id of the entry. Requests that live in memory only have none."""
        return self._visits

    def is_full(self) -> bool:
        """So many bytes are in flight that nothing more should be handed out."""
        return self._size > self._most_size

    # Handing out.

    def take(self, visit: Visit, request: Request) -> None:
        """The engine gets this request now."""
        visit.request = request
        flight = Flight(visit, request, Outgoing(request, self._stored_forms.pop(request, None)))
        self._flights[request] = flight
        if visit.entry is not None:
            self._visits[visit.entry.id] = visit
            visit.size = live_size(visit.entry)
            self._size += visit.size
        _behalf.set(ref(flight))

    def take_nothing(self) -> None:
        """The engine gets no request now: what it does next is not on behalf of the last one."""
        _behalf.set(None)

    def put_behind(self, visit: Visit) -> None:
        """Let a visit wait for the one that has its very request object in flight."""
        assert visit.request is not None
        self._flights[visit.request].waiting.append(visit)

    # Whose is it?

    def match(self, request: Request | None, stage: Stage) -> Flight | None:
        """The request in flight that ``request``, seen at ``stage``, is or was made for.

        The downloader middlewares see the very object that was handed out; a callback may download
        other requests inside its own context, so there nothing else counts. Later the context
        counts first: a middleware may answer with a response that names another request.
        """
        itself = None if request is None else self._flights.get(request)
        if stage is Stage.DOWNLOADED:
            # A callback may download its own request again.
            return None if itself is None or itself.stage is Stage.SCRAPING else itself
        return self.on_behalf() or itself

    def on_behalf(self) -> Flight | None:
        """The request in flight for which the present code runs."""
        behalf = _behalf.get()
        flight = behalf() if isinstance(behalf, ref) else None
        # Not one that Scrapy has finished, nor one of another crawler in this process.
        if flight is None or self._flights.get(flight.request) is not flight:
            return None
        return flight

    # What the middlewares report.

    def sent(self, request: Request) -> None:
        """The request has passed all downloader middlewares on its way out."""
        if (flight := self._flights.get(request)) is not None:
            flight.outgoing.note_sent()
            if flight.stage is Stage.SCRAPING:
                flight.outgoing.note_answered()  # the middlewares have had it once more

    def has_no_page(self, request: Request) -> bool:
        """Whether the request is in flight and must not be downloaded: see ``foreign``."""
        flight = self._flights.get(request)
        entry = None if flight is None else flight.visit.entry
        return entry is not None and skips_navigation(entry)

    def downloaded(self, request: Request, response: Response) -> None:
        if (flight := self.match(request, Stage.DOWNLOADED)) is not None:
            flight.outgoing.note_sent()  # if it was not: it may be a page of a cache
            flight.stage = Stage.DOWNLOADED
            flight.status = response.status
            flight.retry_after = response.headers.get("Retry-After")
            flight.download_error = None

    def download_failed(self, request: Request, error: Exception) -> None:
        if (flight := self.match(request, Stage.DOWNLOADED)) is not None:
            flight.outgoing.note_sent()
            flight.stage = Stage.DOWNLOADED
            flight.retry_after = None
            flight.download_error = describe(error)

    def reached_callback(self, response: Response) -> None:
        if (flight := self.match(response.request, Stage.SCRAPING)) is not None:
            flight.outgoing.note_answered()
            flight.stage = Stage.SCRAPING
            flight.loaded_url = response.url

    def callback_failed(self, request: Request | None, error: BaseException) -> None:
        if (flight := self.match(request, Stage.SCRAPING)) is not None:
            flight.callback_error = describe(error)

    def holder(self, response: Response | None) -> Holder:
        """With what an item is to be saved that is scraped now."""
        flight = self.match(None if response is None else response.request, Stage.SCRAPING)
        if flight is None:
            return start_item()
        while flight.visit.entry is None:
            origin = self._origins[flight.visit]
            if not isinstance(origin, Flight):
                return origin
            flight = origin
        return flight

    # What is scheduled on behalf of a request in flight.

    def is_retry(self, request: Request) -> bool:
        """Whether this is a request in flight, to be tried again; if so, it is noted.

        Only ``get_retry_request()`` both counts ``retry_times`` up and sets ``dont_filter``: copies
        of meta carry the count, too.
        """
        if not (request.dont_filter and _retries(request)):
            return False
        flight = self.on_behalf()
        if flight is not None:
            candidates = [flight]
        else:  # an extension, say, schedules a retry by itself
            candidates = [one for one in self._flights.values() if one.stage > Stage.DOWNLOADING]
        for one in candidates:
            if one.retry is None and _is_same(one.request, request, self._fingerprint):
                one.retry = request
                return True
        return False

    def note_replacement(self, request: Request) -> None:
        """Note if a downloader middleware has put this request in the place of one in flight.

        That is a redirect, or a copy of itself to be tried again by rules other than Scrapy's.
        """
        flight = self.on_behalf()
        if flight is None or flight.stage is not Stage.DOWNLOADED or flight.replacement is not None:
            return
        urls, before = _redirects(request), _redirects(flight.request)
        is_redirect = urls[-1:] == [flight.request.url] and len(urls) == len(before) + 1
        if is_redirect or (request.dont_filter and _target(request) == _target(flight.request)):
            flight.replacement = request
            flight.loaded_url = request.url

    def stored_form(self, request: Request) -> Stored | None:
        """What the queue is to store of a new request in place of what the request holds.

        None where that is the same.
        """
        flight = self.on_behalf()
        if flight is None:
            return None
        if flight.replacement is request:
            stored: Stored | None = flight.outgoing.stored_successor(request)
        else:
            stored = flight.outgoing.stored_link(request)
        if stored is not None:
            self._stored_forms[request] = stored
        return stored

    def _stored_form_in_value(self, request: Request) -> Stored | None:
        """What the queue is to store of a request that the meta of another one holds."""
        if (flight := self._flights.get(request)) is not None:
            # That one may hand it on when this one is finished.
            self._carried[request] = flight.outgoing
        outgoing = self._carried.get(request)
        return None if outgoing is None else outgoing.stored_successor(request)

    def adopt(self, visit: Visit) -> None:
        """A new request lives in memory only: let what led to it wait for it."""
        if (flight := self.on_behalf()) is not None:
            self._origins[visit] = flight
            flight.children.add(visit)
        else:
            self._origins[visit] = Origin.START if is_start() else Origin.NOTHING

    def adopt_late(self, visit: Visit) -> None:
        """The queue has refused a request, which lives in memory from now on. The page that led to
        it may be acked already.
        """
        self._origins[visit] = Origin.NOTHING

    def given_up(self) -> GivenUp:
        """What lives in memory only and would be given up if the crawl ended now."""
        origins = self._origins
        # These are crawled and wait for their own children.
        parents = (origin for origin in origins.values() if isinstance(origin, Flight))
        crawled = {one.visit for one in parents if self._flights.get(one.request) is not one}
        left = origins.keys() - crawled
        return GivenUp(len(left), sum(self._is_lost(visit) for visit in left))

    def _is_lost(self, visit: Visit) -> bool:
        origin = self._origins[visit]
        while isinstance(origin, Flight) and origin.visit in self._origins:
            origin = self._origins[origin.visit]
        return origin is Origin.NOTHING

    # The verdict.

    def settle(self) -> None:
        """Ack or requeue everything that has left the engine since the last call."""
        if not self._flights:
            return
        unfinished, scraping = scrapy_private.unfinished(self._crawler.engine)
        for request, flight in list(self._flights.items()):
            if request not in unfinished and request not in scraping:
                del self._flights[request]
                if flight.visit.entry is not None:
                    self._size -= flight.visit.size
                for visit in flight.waiting:
                    self._frontier.keep(visit)
                if not flight.children:
                    self._judge(flight)

    def _judge(self, flight: Flight) -> None:
        visit = flight.visit
        visit.items = flight.harvest
        if visit.entry is not None:
            del self._visits[visit.entry.id]
        if flight.retry is not None:
            self._requeue(flight, flight.retry, flight.retry_reason)
        elif flight.callback_error is not None and visit.spider_errors < self._most_spider_errors:
            visit.spider_errors += 1
            self._requeue(flight, flight.request, flight.callback_error)
        elif visit.entry is not None:
            self.ack(visit, visit.entry, flight.problem, flight.loaded_url)
        else:
            self._release_parent(visit)

    def _release_parent(self, visit: Visit) -> None:
        parent = self._origins.pop(visit)
        if isinstance(parent, Flight):
            parent.children.remove(visit)
            if not parent.children and self._flights.get(parent.request) is not parent:
                self._judge(parent)

    def ack(
        self, visit: Visit, entry: Entry, problem: str | None, loaded_url: str | None = None
    ) -> None:
        """Mark the entry handled, for good."""
        entry.handled_at = datetime.now(UTC)
        entry.loaded_url = loaded_url
        if problem is not None:
            entry.error_messages.append(problem)
            self._report.count_problem(problem)
        visit.forefront = False
        visit.request = None
        visit.size = entry.size + (visit.items.size if visit.items else 0)
        self._frontier.update(visit)

    def _requeue(self, flight: Flight, request: Request, reason: str) -> None:
        """Send the same entry back, as the request is now, to be handed out after its back-off."""
        old = flight.visit
        retries = _retries(flight.request) if old.entry is None else old.entry.retry_count
        wait = self._back_off.seconds(retries, flight.retry_after)
        again = Visit(
            None,
            request,
            priority=request.priority,
            is_retry=True,
            forefront=self._retries_first,
            not_before=time.monotonic() + wait if wait else 0.0,
            spider_errors=old.spider_errors,
            lease=old.lease,
            items=old.items,
            key=old.key,
        )
        if old.entry is None:
            parent = self._origins[again] = self._origins.pop(old)
            if isinstance(parent, Flight):
                parent.children.remove(old)
                parent.children.add(again)
            self._crawler.stats.inc_value("scheduler/enqueued")
            self._crawler.stats.inc_value("scheduler/enqueued/memory")
            self._frontier.keep(again)
            return
        again.entry = self._retried(flight, old.entry, request, reason)
        again.size = live_size(again.entry) + (again.items.size if again.items else 0)
        self._frontier.update(again)

    def _retried(self, flight: Flight, old: Entry, request: Request, reason: str) -> Entry:
        stored = self._stored_forms[request] = flight.outgoing.stored_successor(request)
        try:
            entry = self._converter.encode(
                request, old.unique_key, replaced=old, **stored._asdict()
            )
        except CodecError as error:
            # This process crawls the new request; the next one will find the old one.
            self._report.unserializable(request, error, is_retry=True)
            entry = old
        else:
            store_spider_errors(entry, flight.visit.spider_errors)
        entry.retry_count = old.retry_count + 1
        entry.error_messages = [*old.error_messages, reason]
        entry.loaded_url = None
        return entry


def inflight_of(crawler: Crawler) -> InFlight | None:
    """What the middlewares of a crawl report to; None where another scheduler is in use."""
    return getattr(scrapy_private.scheduler(crawler), "inflight", None)


def live_size(entry: Entry) -> int:
    """Bytes of an entry that is in memory together with its live request, about."""
    return 2 * entry.size


def _is_same(original: Request, retry: Request, fingerprint: Callable[[Request], bytes]) -> bool:
    """Whether a retry can be one of this request, by what it asks for."""
    return (
        _retries(original) + 1 == _retries(retry)
        and len(_redirects(original)) == len(_redirects(retry))
        and (_target(original) == _target(retry) or fingerprint(original) == fingerprint(retry))
    )


def _target(request: Request) -> tuple[str, str, bytes]:
    return request.method, request.url, request.body


def _retries(request: Request) -> int:
    times: Any = request.meta.get("retry_times")
    return times if isinstance(times, int) else 0  # meta may come from a stranger


def _redirects(request: Request) -> list[str]:
    urls: Any = request.meta.get("redirect_urls")
    return urls if isinstance(urls, list) else []
