"""All text for people: what the log says when a crawl opens, while it runs, and when it closes."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from scrapy import Request, signals

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.notices import (
    Bug,
    LeaseLost,
    LeasesKept,
    Notice,
    OthersSeen,
    RateReached,
)
from scrapy_apify_rq.plurals import plural

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.backends.base import Backend, Info
    from scrapy_apify_rq.crawl.inflight import GivenUp
    from scrapy_apify_rq.crawl.totals import Totals
    from scrapy_apify_rq.entries.models import Entry
    from scrapy_apify_rq.errors import CodecError, MissingError
    from scrapy_apify_rq.identity import Arguments

logger = logging.getLogger(__name__)

# How many reasons for failures the closing line names, their length, and how many are counted.
_REASONS: Final = 5
_REASON_LENGTH: Final = 100
_REASONS_LIMIT: Final = 1000
# How many values that cannot be saved are named.
_MOST_WARNINGS: Final = 20
_WHEN_LOST: Final = {
    "waiting": "before it was handed out. It is left to others",
    "in flight": "while it was crawled. Another worker may crawl it, too",
    "retried": "before its retry was saved. It is left to others",
}


class Sample(NamedTuple):
    """The queue's counts, which include those of all its consumers, and this run's at that time."""

    queue: Info
    handled: int
    time: float


class Report:
    """What one crawl says about itself."""

    def __init__(self, crawler: Crawler, backend: Backend, arguments: Arguments) -> None:
        self._crawler = crawler
        self._arguments = arguments
        self._stats = crawler.stats
        self._backend = backend
        self._problems: Counter[str] = Counter()
        """How many requests failed, by their last error message."""
        self._missing: Counter[str] = Counter()
        """How many entries stay pending, by what the project lacks."""
        self._has_logged_unserializable = False
        self._has_logged_unsaved_item = False
        self._not_kept: set[str] = set()

    def log(self, level: int, text: str) -> None:
        # A request may hold lone surrogates, which no log file can.
        writable = text.encode(errors="backslashreplace").decode()
        logger.log(level, "%s", writable, extra={"spider": self._crawler.spider})

    # Opening.

    def opened(self, info: Info, *, is_over: bool) -> None:
        title = f"{self._title(info)}{self._why()}"
        if not info.total:
            self.log(logging.INFO, f"{title}: new")
        elif info.pending:
            counts = f"{info.pending} pending, {info.handled} handled"
            self.log(logging.INFO, f"{title}: resuming, {counts}")
        elif not is_over:
            self.log(
                logging.INFO,
                f"{title}: resuming, all {info.handled} handled. The last run ended before it was"
                " closed, or its feeds were not stored, which is made up for now",
            )
        else:
            self.log(
                logging.WARNING,
                f"{title} is finished: {info.handled} handled, none pending. Only"
                " requests that are new to it are crawled. To crawl all again, run once with"
                " -s APIFY_RQ_PURGE_ON_START=True, or choose another APIFY_RQ_NAME",
            )

    def job_directory(self, folder: object) -> None:
        """If JOBDIR holds pending requests, nothing will crawl them."""
        if any(Path(str(folder), "requests.queue").glob("*")):
            self.log(
                logging.WARNING,
                f"JOBDIR = {folder!r} holds pending requests of Scrapy's own scheduler, which this"
                " crawl does not read. Unless you have done so, stop it and put them into the queue"
                f" with: scrapy rq import-jobdir {shlex.quote(str(folder))} --spider"
                f" {self._crawler.spidercls.name}"
                f"{' with -a for each argument of this crawl' if self._arguments.names else ''}",
            )

    def emptied(self, info: Info, items: int, why: str) -> None:
        and_items = f" and {items} saved {plural(items, 'item')}" if items else ""
        title = f"{self._title(info)}{self._why()}"
        entries = plural(info.total, "entry", "entries")
        self.log(logging.INFO, f"{title}: emptied of {info.total} {entries}{and_items}, {why}")

    def _why(self) -> str:
        """Why it is this queue, if the spider's arguments decided."""
        names = self._arguments.names
        return f", of this spider with these values of {names}" if names else ""

    def vague_arguments(self) -> None:
        """Warn that another crawl may share our queue."""
        if self._arguments.vague:
            self.log(
                logging.WARNING,
                f"The spider's arguments {self._arguments.vague} cannot be written as text, so only"
                " their types tell this crawl's queue from others. If that is not enough, name the"
                " queue with APIFY_RQ_NAME",
            )

    def _title(self, info: Info) -> str:
        return f"Request queue {info.title!r} in {self._backend.location}"

    # Items.

    def items_not_saved(self) -> None:
        self.log(
            logging.INFO,
            "The items of this crawl are not saved, as is said above. After a kill its feeds begin"
            " anew, without the items of the pages that are handled",
        )

    def pushed_already(self, pipeline: str) -> None:
        self.log(
            logging.INFO,
            f"The items of this crawl are not saved, since {pipeline} pushes them to a dataset. A"
            " kill can repeat items there. To have them there once, remove it from ITEM_PIPELINES",
        )

    def has_gaps(self) -> None:
        self.log(
            logging.WARNING,
            "Earlier runs of this crawl have not saved their items, so its feeds lack them. Give"
            " all runs the same FEEDS, or set APIFY_RQ_ITEMS = True",
        )

    def unnamed_worker(self) -> None:
        self.log(
            logging.INFO,
            "This worker's feeds get what it scrapes in this run. To give them what it has saved in"
            " earlier ones, name it with APIFY_RQ_CLIENT_KEY; scrapy rq items exports what all"
            " workers have saved",
        )

    def unsaved_item(self, item: object, error: CodecError) -> None:
        self._stats.inc_value("apify_rq/items_unsaved")
        if not self._has_logged_unsaved_item:
            self._has_logged_unsaved_item = True
            self.log(
                logging.WARNING,
                f"An item of type {type(item).__qualname__} cannot be saved: {error}. It is"
                " exported as ever, but a kill may lose it. No more of these are logged; see the"
                " stat apify_rq/items_unsaved",
            )

    def replayed(self, count: int, *, is_complete: bool) -> None:
        self._stats.inc_value("apify_rq/items_replayed", count)
        items = plural(count, "item")
        given = f"The feeds have got the {count} {items} that earlier runs have saved"
        if not is_complete:
            given = (
                f"The feeds have got only {count} of the items that earlier runs have saved, since"
                " the crawl is to end. The next run gives them all"
            )
        self.log(logging.INFO, given)

    def replaced_feed(self, path: str) -> None:
        self._left_alone(path, "is not the one that earlier runs have written to")

    def shared_feed(self, path: str) -> None:
        self._left_alone(path, "is one that another crawl has written to, too")

    def _left_alone(self, path: str, why: str) -> None:
        self.log(
            logging.WARNING,
            f"The feed {path} {why}. What is in it stays, and only new items are appended. All"
            " that this crawl has saved: scrapy rq items",
        )

    def no_records(self, why: str) -> None:
        text = f"spider.state and cookies {why}. The next run begins without those of this run"
        self.log(logging.INFO, text)

    def restored(self, values: int, cookies: int) -> None:
        """``values`` of spider.state."""
        if values or cookies:
            self.log(
                logging.INFO,
                f"Restored as an earlier run has saved them: {values}"
                f" {plural(values, 'value')} of spider.state and {cookies}"
                f" {plural(cookies, 'cookie')}",
            )

    # While it runs.

    def not_kept(self, problem: str) -> None:
        """A part of what should survive this run does not. Each problem is reported once."""
        if problem in self._not_kept or len(self._not_kept) >= _REASONS_LIMIT:
            return
        self._not_kept.add(problem)
        self._stats.inc_value("apify_rq/not_kept")
        if len(self._not_kept) <= _MOST_WARNINGS:
            self.log(logging.WARNING, f"{problem}. All else is kept for the next run")
        elif len(self._not_kept) == _MOST_WARNINGS + 1:
            self.log(logging.WARNING, "More cannot be kept: see the stat apify_rq/not_kept")

    def unserializable(self, request: Request, reason: object, *, is_retry: bool = False) -> None:
        self._stats.inc_value("scheduler/unserializable")
        if not self._has_logged_unserializable:
            self._has_logged_unserializable = True
            stored = "It is crawled from memory and not written to the queue"
            if is_retry:
                stored = "It is crawled as it is; the queue keeps it as it was before this retry"
            self.log(
                logging.WARNING,
                f"Unable to serialize request: {request} - reason: {reason}. {stored}. No more of"
                " these are logged; see the stat scheduler/unserializable",
            )

    def undecodable(self, entry: Entry, error: CodecError) -> None:
        self._stats.inc_value("apify_rq/undecodable")
        self.log(
            logging.ERROR,
            f"Entry {entry.id} ({entry.url or 'no URL'}) is not a request: {error}. It is marked"
            " handled, with this message",
        )

    def missing(self, entry: Entry, error: MissingError) -> None:
        """An entry stays pending, because it needs what the project does not have today."""
        self._stats.inc_value("apify_rq/missing")
        if error.name in self._missing or len(self._missing) < _REASONS_LIMIT:
            self._missing[error.name] += 1
        if self._missing[error.name] == 1:
            self.log(
                logging.ERROR,
                f"Entry {entry.id} ({entry.url}) cannot be read by this version of the project:"
                f" {error}. It stays pending. No more of these are logged; see the stat"
                " apify_rq/missing",
            )

    def notice(self, notice: Notice) -> None:
        match notice:
            case RateReached(rate):
                self.log(
                    logging.INFO,
                    f"The crawl is as fast as its request queue allows: {rate}. Requests are held"
                    " back until the queue has marked those before as handled",
                )
            case LeaseLost(entry, while_):
                when = _WHEN_LOST[while_]
                self.log(logging.INFO, f"The lease on entry {entry.id} ({entry.url}) ended {when}")
            case LeasesKept(lock_secs, error):
                why = error or "no answer"
                self.log(
                    logging.WARNING,
                    f"The leases of this crawl could not be given back ({why}). They end by"
                    f" themselves within {lock_secs} s (APIFY_RQ_LOCK_SECS)",
                )
            case OthersSeen(location):
                self.log(
                    logging.WARNING,
                    f"Another program uses the request queue {location}, too. It may look, add and"
                    " repair, but a second crawl of this queue in single access crawls pages twice:"
                    " set APIFY_RQ_ACCESS = 'shared' for both, or run one at a time",
                )
            case Bug(error):
                logger.error(
                    "Bug in scrapy-apify-rq", exc_info=error, extra={"spider": self._crawler.spider}
                )

    def out_of_money(self, limit: object) -> str:
        return (
            f"The run has cost what its user allows, {limit} US dollars"
            " (ACTOR_MAX_TOTAL_CHARGE_USD). What is pending stays pending: resurrect the run with a"
            " higher limit to go on"
        )

    def stopping(self, text: str) -> None:
        self.log(logging.WARNING, f"{text}. The spider is closed")

    def failed(self, error: BackendError) -> None:
        self.log(logging.ERROR, f"{error} The spider is closed ({error.reason}).")

    def count_problem(self, problem: str) -> None:
        """Count a reason for the closing line. Messages that all differ must not fill memory."""
        problem = problem.partition("\n")[0][:_REASON_LENGTH]
        if problem in self._problems or len(self._problems) < _REASONS_LIMIT:
            self._problems[problem] += 1

    # Closing.

    def given_up(self, given_up: GivenUp) -> None:
        if given_up.total:
            self._stats.inc_value("apify_rq/given_up", given_up.total)
        if given_up.lost:
            self._stats.inc_value("apify_rq/lost", given_up.lost)
            self.log(
                logging.ERROR,
                f"{_requests(given_up.lost)} in memory only will not be crawled, since the crawl"
                " ends and nothing that is still pending leads there again. See the warning above"
                " for why the queue cannot hold what is in memory",
            )

    def memory(self, given_up: GivenUp) -> str:
        """The end of the closing line."""
        if not given_up.total:
            return ""
        again = given_up.total - given_up.lost
        ends = {
            "the next run comes across again": again,
            "lost": given_up.lost,
        }
        parts = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
        return f"; given up, since in memory only: {_requests(given_up.total)}, {parts}"

    def close(self, text: str) -> None:
        """Log the closing line below Scrapy's stats, where people look first."""
        if self._crawler.engine.start_time is None:  # it will not stop, since it never ran
            logger.info("%s", text)
            return
        # The closure must not know the crawler, or its signals would keep it alive for ever.
        self._crawler.signals.connect(
            lambda: logger.info("%s", text), signals.engine_stopped, weak=False
        )

    def not_opened(self, error: BackendError | None) -> str:
        why = "" if error is None else f": {error}"
        return f"The request queue could not be opened, so nothing was crawled{why}"

    def gone(self) -> str:
        return (
            f"The queue in {self._backend.location} was deleted or emptied by somebody else during"
            f" the crawl, after this run had handled {self.count('handled')}. What was pending in"
            " it is no longer there. Run the spider again to start from the beginning"
        )

    def unsaved(self, adds: int, updates: int) -> str:
        return (
            f"The queue in {self._backend.location} failed. Not saved: the end or retry of"
            f" {_requests(updates)}, still pending, and {adds} new {plural(adds, 'request')}, not"
            " in the queue. The pages that led to new requests are still pending, and lead there"
            " again. Run the spider again to go on"
        )

    async def summary(
        self, info: Info | BackendError, all_totals: Callable[[], Awaitable[Totals]]
    ) -> str:
        """This run, all runs and the queue, after everything is saved."""
        handled, failed, retried = map(self.count, ("handled", "failed", "retried"))
        run = f"this run handled {handled} ({failed} of them failed) and retried {retried}"
        try:
            if isinstance(info, BackendError):
                raise info
            run += _of_all(await all_totals())
            items = 0 if self._backend.items is None else await self._backend.items.count()
        except BackendError as error:  # all is saved, so the run is as good as any
            location = self._backend.location
            return f"Request queue in {location}: {run}; its counts are unknown: {error}"
        saved = f" and {items} {plural(items, 'item')}" if items else ""
        return (
            f"{self._title(info)}: {run}; the queue holds {info.handled} handled,"
            f" {info.pending} pending{saved}{self._reasons(failed)}{self._left()}{self._refused()}"
        )

    def _left(self) -> str:
        """What another version of the project has to crawl, and why."""
        if not (count := self.count("missing")):
            return ""
        most = [f"{number} x {name}" for name, number in self._missing.most_common(_REASONS)]
        return (
            f"; {count} {plural(count, 'entry', 'entries')} left pending, which this version of the"
            f" project cannot read: {', '.join(most)}"
        )

    def _refused(self) -> str:
        if not (count := self.count("refused")):
            return ""
        return (
            f"; {_requests(count)} left pending, whose end the queue refused to store: see the"
            " errors above"
        )

    def count(self, stat: str) -> int:
        number: int = self._stats.get_value(f"apify_rq/{stat}", 0)
        return number

    def _reasons(self, failed: int) -> str:
        """Why requests failed, the most frequent reasons first."""
        most = self._problems.most_common(_REASONS)
        parts = [f"{count} x {problem}" for problem, count in most]
        if (others := failed - sum(count for _, count in most)) > 0:
            parts.append(f"{others} for other reasons")
        return f"; failed: {', '.join(parts)}" if parts else ""

    # Progress.

    def progress(self, before: Sample | None, now: Sample, since: Sample) -> str:
        """Say how far the crawl is. ``before`` is the last sample, ``since`` where counting began.

        Other consumers shorten the time that is left. Before the first answer nothing is known
        about them, and the API's counts may lag behind what we know of ourselves.
        """
        seconds = now.time - (before or since).time
        own = now.handled - (before or since).handled
        total = own if before is None else max(own, now.queue.handled - before.queue.handled)
        queue = now.queue
        return (
            f"Request queue: {queue.handled} handled, {queue.pending} pending; this run:"
            f" {self.count('failed')} failed, {60 * own / seconds:.0f} pages/min;"
            f" {_time_left(queue.pending, total / seconds)}"
        )


def _of_all(totals: Totals) -> str:
    """Empty if there was one run only."""
    if totals.runs <= 1:
        return ""
    return (
        f"; all {totals.runs} runs handled {totals.pages} ({totals.failed} of them failed), retried"
        f" {totals.retries} and scraped {totals.items} {plural(totals.items, 'item')} in"
        f" {timedelta(seconds=round(totals.seconds))} (without the last seconds before a kill)"
    )


def _requests(count: int) -> str:
    return f"{count} {plural(count, 'request')}"


def _time_left(pending: int, per_second: float) -> str:
    if per_second <= 0:
        return "time left unknown" if pending else "none left"
    return f"about {timedelta(seconds=round(pending / per_second))} left at this pace"
