"""Updates, which the API takes one by one, and those that it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from scrapy_apify_rq.backends.apify import wire
from scrapy_apify_rq.backends.apify.access import Access
from scrapy_apify_rq.backends.apify.endpoints import HEAD_LIMIT, Endpoints
from scrapy_apify_rq.backends.apify.http import Refused
from scrapy_apify_rq.backends.base import Updated
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError

logger = logging.getLogger(__name__)

# When this many updates are refused, the entries are not what is wrong.
_REFUSED_LIMIT: Final = HEAD_LIMIT // 2


class Updates:
    """Replaces entries, and reports each confirmed update to ``access``."""

    def __init__(self, api: Endpoints, access: Access, inc_stat: Callable[[str], None]) -> None:
        self._api = api
        self._access = access
        self._inc_stat = inc_stat
        self.refused: set[str] = set()
        """Ids of entries whose update the API refused. They are not claimed again."""

    async def put(self, entry: Entry, forefront: bool) -> Updated:
        text = wire.to_send(entry)
        try:
            if why := wire.too_long(text):  # a server may cut the connection instead of answering
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
            answer = await self._api.put_request(entry.id, text, forefront=forefront)
        except Refused as error:
            self._note_refused(entry, error)
            return Updated(was_handled=False, refused=True)
        self.refused.discard(entry.id)
        if entry.is_handled:
            self._access.acked(entry.id)
        else:
            self._access.wrote(entry, wire.as_stored(entry.id, text))
        return Updated(answer.data.was_already_handled and not answer.maybe_repeated)

    def _note_refused(self, entry: Entry, error: Refused) -> None:
        """Log that an entry stays in the queue as it was. This crawl goes on without it."""
        self.refused.add(entry.id)
        self._access.leave(entry.id)
        self._inc_stat("apify_rq/api/refused")
        logger.error(
            "The API refuses the update of entry %s (%s): %s. It stays pending, and the next run"
            " crawls it again",
            entry.id,
            entry.url[:500],
            error,
        )
        if len(self.refused) > _REFUSED_LIMIT:
            raise BackendError(
                f"The API has refused {len(self.refused)} updates. The last error was: {error}."
                " The log names the entries."
            )
