"""A wrong setting gives one line in the log of ``scrapy crawl``, and no traceback.

Nobody awaits the crawl that a command starts. So asyncio or Twisted logs its error, below all the
calls that led to it. A script gets the exception as it is.
"""

from __future__ import annotations

import logging

from twisted.logger import globalLogBeginner

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.errors import ConfigError


def tell_in_one_line() -> None:
    """Call this in a crawl before anything of ours can raise ConfigError. Twice does no harm."""
    if scrapy_private.is_command():
        for name in ("asyncio", "twisted"):
            logging.getLogger(name).addFilter(_shorten)


def tell_nothing_else() -> None:
    """Twisted, if it runs the crawl, also logs a heading, and writes to the standard error.

    Call this when the command is about to end by a ConfigError.
    """
    if scrapy_private.is_command():
        logging.getLogger("twisted").addFilter(_is_no_heading)
        globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    while error is not None and not isinstance(error, ConfigError):
        error = error.__context__  # of an engine that could not be closed, half up as it was
    if error is not None:
        scrapy_private.fail_command()  # Scrapy 2.18 does not
        record.name, record.msg, record.args, record.exc_info = __name__, str(error), (), None
        record.levelno, record.levelname = logging.ERROR, "ERROR"
    return True


def _is_no_heading(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Unhandled error in Deferred")
