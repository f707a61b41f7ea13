"""The status message of an Actor run, and what the run has cost so far.

https://docs.apify.com/platform/actors/development/programming-interface/status-messages

The message is the progress line of the log, and in the end its closing line. Each answer of the
platform is the run, with the events that it has charged for; so the limit that the user has set for
its cost is known without more calls. Nothing that fails here ends a crawl.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import OTHER_RATE

if TYPE_CHECKING:
    from scrapy_apify_rq.backends.apify.http import Client
    from scrapy_apify_rq.config import Config

logger = logging.getLogger(__name__)

# Seconds between two messages, and to try again, as the next one follows soon; for the last one.
_INTERVAL: Final = 10.0
_PATIENCE: Final = 1.0
_LAST_PATIENCE: Final = 5.0
# Characters. People read it in a list of runs.
_LONGEST: Final = 500
# The platform charges it by itself for each item in the run's dataset.
_ITEM_EVENT: Final = "apify-default-dataset-item"


class RunStatus:
    """Tells the platform between ``start`` and ``end``. Outside of a run it does nothing."""

    def __init__(
        self,
        config: Config,
        *,
        describe: Callable[[], Awaitable[str]],
        limit_reached: Callable[[Decimal], None],
        inc_stat: Callable[[str], None],
    ) -> None:
        """``describe`` says how far the crawl is. ``limit_reached`` is called with the limit."""
        self._config = config
        self._describe = describe
        self._limit_reached = limit_reached
        self._inc_stat = inc_stat
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_warned = False

    def start(self) -> None:
        if self._config.run.id is None or self._config.token is None:
            return
        # Imported late: only a run needs it.
        from scrapy_apify_rq.backends.apify.http import Client

        self._client = client = Client(
            self._config.api_base_url,
            self._config.token,
            patience=_PATIENCE,
            inc_stat=self._inc_stat,
        )
        try:
            client.open()
        except BackendError as error:
            _warn(error)
            return
        self._task = asyncio.create_task(self._tell_regularly(client))

    async def end(self, text: str) -> None:
        """The crawl is over; ``text`` stays on show."""
        if self._task is None or self._client is None:
            return
        self._task.cancel()
        self._client.patience = _LAST_PATIENCE
        try:
            async with asyncio.timeout(_LAST_PATIENCE):
                await self._tell(self._client, text, is_terminal=True)
        except (BackendError, TimeoutError) as error:
            _warn(error)

    async def stop(self) -> None:
        if self._task is not None and self._client is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._client.close()

    async def _tell_regularly(self, client: Client) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._tell(client, await self._describe(), is_terminal=False)
                self._has_warned = False
            except BackendError as error:
                if not self._has_warned:
                    _warn(error)
                self._has_warned = True

    async def _tell(self, client: Client, text: str, *, is_terminal: bool) -> None:
        from scrapy_apify_rq.backends.apify.answers import reading
        from scrapy_apify_rq.backends.apify.http import Refused

        try:
            answer = await client.call(
                "update_run",
                "PUT",
                _path(self._config),
                rate=OTHER_RATE,
                read=reading(dict[str, Any]),
                body=_message(text, is_terminal=is_terminal),
            )
        except Refused as error:
            raise BackendError(str(error)) from None
        except BackendError:
            raise BackendError("the platform does not answer") from None
        limit = self._config.run.max_charge
        if limit is not None and not is_terminal and is_spent(answer.data, limit):
            self._limit_reached(limit)


def tell_before_start(config: Config, text: str) -> None:
    """The crawl does not begin, for this reason. Waits for the platform, but not for long."""
    if config.run.id is None or config.token is None:
        return
    from scrapy_apify_rq.backends.apify import blocking

    url = f"{config.api_base_url}/v2/{_path(config)}"
    try:
        blocking.put(url, _message(text, is_terminal=True), token=config.token)
    except BackendError as error:
        _warn(error)


def _path(config: Config) -> str:
    return f"actor-runs/{quote(str(config.run.id), safe='')}"


def _message(text: str, *, is_terminal: bool) -> bytes:
    """What to send, as JSON."""
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return json.dumps({"statusMessage": short, "isStatusMessageTerminal": is_terminal}).encode()


def is_spent(run: dict[str, Any], limit: Decimal) -> bool:
    """Whether what is left of the limit does not pay for one more item."""
    try:
        events = run["pricingInfo"]["pricingPerEvent"]["actorChargeEvents"]
        prices = {name: Decimal(str(event["eventPriceUsd"])) for name, event in events.items()}
        counts = run["chargedEventCounts"].items()
        left = limit - sum(count * prices.get(name, 0) for name, count in counts)
    except (KeyError, TypeError, AttributeError, ArithmeticError):
        return False  # not paid by events, or at a price that depends on the user
    return bool(left <= 0 or left < prices.get(_ITEM_EVENT, 0))


def _warn(error: Exception) -> None:
    logger.warning("The status message of the Actor run could not be set: %s", error or "no answer")
