"""A visit while the engine has it, and how the attempt went."""

from __future__ import annotations

from dataclasses import dataclass

from scrapy import Request
from scrapy.utils.response import response_status_message

from scrapy_apify_rq.frontier.visit import Visit


@dataclass(slots=True, eq=False)
class Flight:
    visit: Visit
    status: int | None = None
    """Of the last response that the downloader gave."""
    download_error: str | None = None
    reached_callback: bool = False
    loaded_url: str | None = None
    callback_error: str | None = None
    retry: Request | None = None
    """The request that Scrapy's retry machinery made of this one."""

    @property
    def is_downloaded(self) -> bool:
        """The downloader is done with it, well or not, and its callback has not been reached."""
        ended = self.status is not None or self.download_error is not None
        return ended and not self.reached_callback

    @property
    def status_text(self) -> str | None:
        return None if self.status is None else response_status_message(self.status)

    @property
    def problem(self) -> str | None:
        """Why Scrapy gave up on the request; None if it came to its callback or its redirect."""
        if self.callback_error is not None:
            return self.callback_error
        if self.reached_callback or self.loaded_url is not None:
            return None
        if self.download_error is not None or self.status is None:
            return self.download_error
        if self.status < 400:
            return f"{self.status_text}, but a middleware kept it from the callback"
        return self.status_text

    @property
    def retry_reason(self) -> str:
        if self.callback_error is not None:
            return self.callback_error
        if self.reached_callback:
            return f"{self.status_text}, but the callback asked for a retry"
        return self.download_error or self.status_text or "a middleware asked for a retry"
