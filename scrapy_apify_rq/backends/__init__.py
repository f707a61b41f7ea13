"""Where a queue can be stored. Each place implements ``backends.base.Backend``."""

from __future__ import annotations

from collections.abc import Callable

from scrapy_apify_rq.backends.base import Backend, Purpose
from scrapy_apify_rq.backends.sqlite import queue as sqlite
from scrapy_apify_rq.config import Config


def backend_for(
    config: Config,
    inc_stat: Callable[[str], None] = lambda stat: None,
    *,
    purpose: Purpose = "crawl",
) -> Backend:
    """Make the backend that the settings ask for, not open yet. ``inc_stat`` counts a stat."""
    lock_secs = config.lock_secs if config.access == "shared" else None
    if config.backend == "apify":
        # Imported late: a crawl on the embedded queue need not spend 0.07 s on importing aiohttp.
        from scrapy_apify_rq.backends.apify.queue import ApifyBackend

        return ApifyBackend(
            config.api_base_url,
            config.token,
            name=config.queue_name,
            id=config.queue_id,
            lock_secs=lock_secs,
            client_key=config.client_key,
            about=_about(config, config.arguments.names),
            dataset=config.dataset,
            store=config.run_store,
            patience=config.unavailable_timeout,
            memory=config.memory // 4,
            inc_stat=inc_stat,
        )
    return sqlite.SqliteBackend(
        config.storage_dir,
        name=config.queue_name,
        id=config.queue_id,
        lock_secs=lock_secs,
        client_key=config.client_key,
        about=_about(config, config.arguments.shown),
        patience=config.unavailable_timeout,
        purpose=purpose,
    )


def _about(config: Config, arguments: str) -> str | None:
    """Whose queue it is, if its name does not say so. Values stay on this machine."""
    return f"{config.spider_name}: {arguments}" if arguments else None


def check(config: Config) -> None:
    """Raise the ConfigError that ``open`` would raise, but before the engine runs."""
    if config.backend == "sqlite":
        alone = config.access == "single"
        sqlite.check(config.storage_dir, config.queue_id, config.queue_name, alone=alone)
