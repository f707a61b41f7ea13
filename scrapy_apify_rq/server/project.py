"""What the page needs to know of the Scrapy project whose queues the server has."""

from __future__ import annotations

from typing import Any, Protocol

from scrapy_apify_rq.entries.models import Entry


class Project(Protocol):
    """``queue`` is the name of a queue, by which its spider is found."""

    def new_entry(self, queue: str | None, line: bytes) -> Entry:
        """Make an entry of a URL or of a JSON object, with the key that the spider's own link
        would have. Raises CodecError or ValueError.
        """

    def as_request(self, queue: str | None, entry: Entry) -> dict[str, Any]:
        """The attributes of the request that the spider would get. Raises CodecError."""

    def renew(self, queue: str | None, entry: Entry) -> None:
        """Make a handled entry pending again as if it had never been tried."""
