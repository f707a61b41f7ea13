"""Every setting of this package, declared once: its name, its default, and how it is read.

Our settings and Apify's environment variables are read here and nowhere else. Reading is strict,
because a crawl that runs for hours on a misspelt setting costs more than one that does not start:
an unknown name or a wrong value raises ``ConfigError``, which names the setting and the cure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, get_type_hints

from scrapy.settings import BaseSettings

from scrapy_apify_rq import proxy_configuration, run_environment
from scrapy_apify_rq import setting_readers as read
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.identity import NO_ARGUMENTS, Arguments
from scrapy_apify_rq.proxy_configuration import ProxyConfiguration
from scrapy_apify_rq.run_environment import RunEnvironment
from scrapy_apify_rq.setting_readers import KeyKind, Reader, Source


class Setting(NamedTuple):
    """One setting. A default of None means that other values decide."""

    name: str
    default: object
    reader: Reader[Any]

    def read(self, source: Source) -> Any:
        return self.reader(source, self.name)


class Derived(NamedTuple):
    """How a value that has no setting of its own is read."""

    read: Callable[[Source], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one crawl, checked and resolved."""

    token: Annotated[str | None, Setting("APIFY_TOKEN", None, read.token)] = field(repr=False)
    api_base_url: Annotated[
        str, Setting("APIFY_API_BASE_URL", "https://api.apify.com", read.api_base_url)
    ]
    """Without a slash or ``/v2`` at its end."""
    enabled: Annotated[bool, Setting("APIFY_RQ_ENABLED", True, read.boolean)]
    backend: Annotated[
        Literal["apify", "sqlite"], Setting("APIFY_RQ_BACKEND", "auto", read.backend)
    ]
    queue_id: Annotated[str | None, Setting("APIFY_RQ_ID", None, read.queue_id)]
    """An id, ``username~name`` or ``~name``. Either this or ``queue_name`` is set, except where the
    settings name no queue and the spider is unknown."""
    queue_name: Annotated[str | None, Setting("APIFY_RQ_NAME", None, read.queue_name)]
    queue_is_default: Annotated[bool, Derived(read.queue_is_default)]
    """The project did not name the queue, so a finished one starts afresh."""
    spider_name: Annotated[str | None, Derived(lambda source: source.spider_name)]
    queue_is_of_spider: Annotated[bool, Derived(read.queue_is_of_spider)]
    """It is the default queue of the spider with these ``arguments``."""
    arguments: Annotated[Arguments, Derived(read.arguments)] = field(repr=False)
    """Those that the queue is named after."""
    storage_dir: Annotated[Path, Setting("APIFY_RQ_STORAGE_DIR", "./storage", read.storage_dir)]
    access: Annotated[
        Literal["single", "shared"],
        Setting("APIFY_RQ_ACCESS", "single", read.choice("single", "shared")),
    ]
    client_key: Annotated[str | None, Setting("APIFY_RQ_CLIENT_KEY", None, read.client_key)]
    """None: the backend chooses one."""
    lock_secs: Annotated[int, Setting("APIFY_RQ_LOCK_SECS", 180, read.whole(minimum=1))]
    order: Annotated[
        Literal["fifo", "lifo"], Setting("APIFY_RQ_ORDER", "fifo", read.choice("fifo", "lifo"))
    ]
    retry_forefront: Annotated[bool, Setting("APIFY_RQ_RETRY_FOREFRONT", True, read.boolean)]
    retry_delay: Annotated[float, Setting("APIFY_RQ_RETRY_DELAY", 1, read.seconds(zero=True))]
    retry_spider_errors: Annotated[
        int, Setting("APIFY_RQ_RETRY_SPIDER_ERRORS", 0, read.whole(minimum=0))
    ]
    unique_key: Annotated[
        KeyKind,
        Setting("APIFY_RQ_UNIQUE_KEY", "fingerprint", read.key_kind),
    ]
    repeat_start: Annotated[bool, Setting("APIFY_RQ_REPEAT_START", False, read.boolean)]
    cookies: Annotated[bool, Setting("APIFY_RQ_COOKIES", True, read.boolean)]
    callbacks: Annotated[Mapping[str, str], Setting("APIFY_RQ_CALLBACKS", {}, read.callbacks)]
    trusted_modules: Annotated[
        tuple[str, ...], Setting("APIFY_RQ_TRUSTED_MODULES", [], read.modules)
    ]
    project_packages: Annotated[tuple[str, ...], Derived(read.project_packages)]
    """The project's own, whose modules may be imported, too."""
    plugin_packages: Annotated[tuple[str, ...], Derived(read.plugin_packages)]
    """Those of the components that the project's settings name."""
    schemes: Annotated[
        tuple[str, ...], Setting("APIFY_RQ_SCHEMES", ["http", "https"], read.schemes)
    ]
    """Of the URLs that a crawl fetches from an API queue."""
    items: Annotated[bool | Literal["auto"], Setting("APIFY_RQ_ITEMS", "auto", read.items)]
    """Whether to save what is scraped. "auto": where the crawl has feeds or a dataset."""
    dataset: Annotated[str | None, Setting("APIFY_RQ_DATASET", None, read.dataset)]
    """Where a queue of the API saves items: an id, a name, ``username~name`` or ``~name``. Without
    the setting that of the Actor run. None: one that is named after the queue."""
    run_store: Annotated[str | None, Derived(read.run_store)]
    """The id of the run's key-value store; None outside of one, and where the queue is not the
    run's, since a later run has to find what it keeps."""
    purge_on_start: Annotated[bool, Setting("APIFY_RQ_PURGE_ON_START", False, read.boolean)]
    window: Annotated[int, Setting("APIFY_RQ_WINDOW", 1000, read.whole(minimum=1))]
    outbox: Annotated[int, Setting("APIFY_RQ_OUTBOX", 2000, read.whole(minimum=1))]
    memory: Annotated[int, Setting("APIFY_RQ_MEMORY_MB", 64, read.megabytes(minimum=1))]
    """Bytes for the window, the outbox and the entries that the backend keeps, together."""
    idle_before_close: Annotated[
        float, Setting("APIFY_RQ_IDLE_BEFORE_CLOSE", 0, read.seconds(zero=True))
    ]
    unavailable_timeout: Annotated[
        float, Setting("APIFY_RQ_UNAVAILABLE_TIMEOUT", 600, read.seconds(zero=False))
    ]
    gc_freeze: Annotated[bool, Setting("APIFY_RQ_GC_FREEZE", False, read.boolean)]
    input: Annotated[bool, Setting("APIFY_RQ_INPUT", True, read.boolean)]
    """Whether to give the spider the input of the Actor run."""
    proxy: Annotated[
        ProxyConfiguration | None, Setting("APIFY_RQ_PROXY", None, proxy_configuration.read)
    ]
    run: Annotated[RunEnvironment, Derived(run_environment.read)]
    events_url: Annotated[str | None, Derived(read.events_url)] = field(repr=False)
    """The address of the platform's events for an Actor run; None outside of one."""
    timeout_at: Annotated[datetime | None, Derived(read.timeout_at)]
    """When the platform ends the Actor run; None if it does not, or outside of one."""

    @classmethod
    def from_settings(
        cls,
        settings: BaseSettings,
        environ: Mapping[str, str],
        spider_name: str | None,
        arguments: Arguments | None = NO_ARGUMENTS,
    ) -> Config:
        """Read all settings, or raise ``ConfigError`` for the first thing that is wrong.

        Without the name of a spider there is no default queue: the settings may name none at all.
        The default queue belongs to the spider's ``arguments``; None if they are unknown.
        """
        _refuse_unknown_names(settings)
        source = Source(
            settings=settings,
            environ=environ,
            defaults=DEFAULTS,
            spider_name=spider_name,
            arguments=arguments,
        )
        config = cls(**{name: declared.read(source) for name, declared in _DECLARED.items()})
        # A scheduler that is switched off needs neither a token nor a queue to itself.
        if config.enabled:
            _require_token(config)
            _refuse_purge_by_many(config)
        return config


_DECLARED: Final[Mapping[str, Setting | Derived]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Config, include_extras=True).items()
}
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {item.name: item.default for item in _DECLARED.values() if isinstance(item, Setting)}
)
"""The default of each setting that exists, in the order of docs/settings.md."""


def is_enabled(settings: BaseSettings) -> bool:
    """Return whether the project wants the request queue, without a look at other settings."""
    return read.boolean(_source(settings, {}), "APIFY_RQ_ENABLED")


def storage_dir(settings: BaseSettings, environ: Mapping[str, str]) -> Path:
    """Return the folder of the embedded queues, without a look at other settings."""
    return read.storage_dir(_source(settings, environ), "APIFY_RQ_STORAGE_DIR")


def _source(settings: BaseSettings, environ: Mapping[str, str]) -> Source:
    return Source(settings=settings, environ=environ, defaults=DEFAULTS)


# What does not go together, and names that do not exist


def _refuse_purge_by_many(config: Config) -> None:
    if config.access == "shared" and config.purge_on_start:
        raise ConfigError(
            "APIFY_RQ_PURGE_ON_START = True with APIFY_RQ_ACCESS = 'shared': each worker that "
            "starts would delete what the others crawl; empty the queue once before you start "
            "them, with 'scrapy rq purge', and set APIFY_RQ_PURGE_ON_START = False"
        )


def _require_token(config: Config) -> None:
    if config.backend == "apify" and config.token is None:
        raise ConfigError(
            "APIFY_RQ_BACKEND = 'apify' needs a token: set APIFY_TOKEN (setting or environment "
            "variable), or set APIFY_RQ_BACKEND = 'sqlite' for the embedded queue"
        )


def _refuse_unknown_names(settings: BaseSettings) -> None:
    # Scrapy's names are case-sensitive: it would ignore apify_rq_name without a word.
    names = [name for name in settings if name.upper().startswith("APIFY_RQ_")]
    if unknown := sorted(name for name in names if name not in DEFAULTS):
        raise ConfigError(" ".join(_unknown(name) for name in unknown))


REMOVED: Final = {
    "APIFY_RQ_PROGRESS": "there is no bar any more, since it and the log garbled each other; remove"
    " the setting, and run 'scrapy rq status --watch' beside the crawl",
}


def _unknown(name: str) -> str:
    if name in REMOVED:
        return f"{name}: {REMOVED[name]}."
    # Without the prefix, which would make any two names look alike.
    words = {re.sub("^APIFY_(RQ_)?", "", known): known for known in DEFAULTS}
    near = read.nearest(name.upper().removeprefix("APIFY_RQ_"), words)
    if near is None:
        return f"Unknown setting {name}: there are {', '.join(DEFAULTS)}."
    return f"Unknown setting {name}: did you mean {words[near]}?"
