"""Calls before the event loop runs: what a crawl must know, or say, before it begins.

They block, so they are short: a few attempts, each with a time limit. ``http`` has the client of a
crawl.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import httpx2

from scrapy_apify_rq.backends.apify.transport import proxy_for
from scrapy_apify_rq.errors import BackendError

# Seconds to wait before each further attempt, and for each step of an attempt.
_PAUSES: Final = (0.5, 1.0, 2.0)
_TIMEOUT: Final = 10.0
# Seconds for a whole answer, and its bytes.
_LONGEST_CALL: Final = 30.0
_LONGEST_ANSWER: Final = 32 * 1024 * 1024


class _TryAgain(Exception):
    pass


def get(url: str, *, what: str, token: str | None = None) -> bytes | None:
    """Return the body; None for a 404.

    Raises BackendError, which names ``what`` is wanted and never the query of the URL or the token.
    """
    _quiet_loggers()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for pause in (*_PAUSES, None):
        try:
            return _attempt(url, headers, what)
        except _TryAgain as problem:
            if pause is None:
                raise BackendError(f"{what} cannot be read: {problem}") from None
            time.sleep(pause)
    raise AssertionError


def put(url: str, body: bytes, *, token: str | None) -> None:
    """Send this JSON, once. Raises BackendError."""
    _quiet_loggers()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        with httpx2.Client(trust_env=False, proxy=proxy_for(url), timeout=_TIMEOUT) as client:
            answer = client.put(url, content=body, headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise BackendError(type(error).__name__) from None
    if answer.status_code >= 300:
        raise BackendError(f"the answer is {answer.status_code}")


def _quiet_loggers() -> None:
    """Let httpx2 not log the URL of each call, as Scrapy does with httpx, unless the project wants
    it.
    """
    for name in ("httpx2", "httpcore2"):
        if (log := logging.getLogger(name)).level == logging.NOTSET:
            log.setLevel(logging.WARNING)


def _attempt(url: str, headers: dict[str, str], what: str) -> bytes | None:
    ends = time.monotonic() + _LONGEST_CALL
    body = bytearray()
    # Without trust_env, which would put the password of ~/.netrc in the place of the token.
    with httpx2.Client(
        trust_env=False,
        proxy=proxy_for(url),
        timeout=_TIMEOUT,
        follow_redirects="Authorization" not in headers,
    ) as client:
        try:
            with client.stream("GET", url, headers=headers) as answer:
                if answer.next_request is not None:  # a record may be elsewhere, behind a link
                    return _attempt(str(answer.next_request.url), {}, what)
                if answer.status_code == 404:
                    return None
                if answer.status_code == 429 or answer.status_code >= 500:
                    raise _TryAgain(f"the answer is {answer.status_code}")
                if answer.status_code >= 300:
                    raise BackendError(
                        f"{what} cannot be read: the answer is {answer.status_code}"
                        f" {answer.reason_phrase}"
                    )
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _LONGEST_ANSWER:
                        raise BackendError(f"{what} is longer than {_LONGEST_ANSWER:,} bytes")
                    if time.monotonic() > ends:
                        raise _TryAgain(f"it takes longer than {_LONGEST_CALL:.0f} seconds")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            # Without its text, which may quote the URL.
            raise _TryAgain(type(error).__name__) from None
    return bytes(body)
