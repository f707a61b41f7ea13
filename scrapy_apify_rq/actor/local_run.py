"""A run under ``apify run``, on the user's machine: does it start afresh or go on?

The CLI starts afresh unless it is told ``--resurrect`` or ``--no-purge``. It empties the default
storages, of which our file is none, or lets the Actor do it (``CRAWLEE_PURGE_ON_START=1``). The
variable is 0 if the CLI has to protect an input that it has written itself (``__CLI_INPUT``),
though it has emptied the storages. So each crawl leaves a mark in the default request queue's
folder: if that is gone, the CLI has emptied it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from scrapy_apify_rq.config import Config

logger = logging.getLogger(__name__)

_KEY_OF_CLI: Final = "__CLI_"
# Crawlee takes only .json files of this folder for requests.
_ENDING: Final = "in-sqlite"


def local_start(config: Config) -> Literal["afresh", "go on"] | None:
    """What the CLI wants of the crawl's own, embedded queue; None: this is no run of the CLI."""
    mark = _mark(config)
    if mark is None:
        return None
    is_emptied = config.run.input_key.startswith(_KEY_OF_CLI) and not mark.exists()
    return "afresh" if config.run.purge or is_emptied else "go on"


def leave_mark(config: Config) -> None:
    mark = _mark(config)
    if mark is None:
        return
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s), so that the next apify run may start afresh even with"
            " --resurrect",
            mark,
            error.strerror,
        )


def _mark(config: Config) -> Path | None:
    """None: this is no such run, or the queue is not its own to empty."""
    folder = config.run.local_folder
    is_own = config.backend == "sqlite" and config.queue_is_default and config.access == "single"
    if folder is None or config.run.purge is None or not is_own:
        return None
    name = config.queue_name or config.queue_id
    return folder / "request_queues" / "default" / f"{name}.{_ENDING}"
