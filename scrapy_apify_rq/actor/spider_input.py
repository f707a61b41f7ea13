"""The input of an Actor run becomes the arguments, start URLs and settings of a spider.

Scrapy makes the spider before it asks any add-on. But an add-on may choose the spider loader, which
hands out the spider's class by its name; so the class that it hands out reads the input in
``from_crawler``. The input is read and checked when the class is loaded, while ``scrapy crawl``
can still end with exit status 2.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.exceptions import UsageError
from scrapy.settings import BaseSettings, Settings
from scrapy.utils.misc import load_object

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.actor.input import has_input, read_input
from scrapy_apify_rq.actor.input_fields import FIELDS, START_URLS
from scrapy_apify_rq.actor.run_status import tell_before_start
from scrapy_apify_rq.actor.start_urls import StartRequests, read_start_urls
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import BackendError, ConfigError

logger = logging.getLogger(__name__)

# Above the project and the spider, below the command line.
_PRIORITY: Final = 35
_ARGUMENT: Final = "start_urls"


class SpiderInput:
    """What one input means for one spider class. Raises ConfigError, which names the field."""

    def __init__(self, spidercls: type[Spider], values: Mapping[str, Any]) -> None:
        parameters = _Parameters(spidercls)
        self.arguments: dict[str, Any] = {}
        """Of the spider."""
        self._settings: dict[str, Any] = {}
        self._starts = []
        for name, value in values.items():
            argument = parameters.name_for(name)
            if name == START_URLS and argument is None:
                self._starts = read_start_urls(value)
            elif name in FIELDS and argument is None:
                if value is not None:
                    field = FIELDS[name]
                    self._settings[field.setting] = field.check(name, value)
            else:
                parameters.check(name, argument or name)
                self.arguments[argument or name] = value
        urls = [start.url for start in self._starts]
        if urls and parameters.has(_ARGUMENT):
            self.arguments.setdefault(_ARGUMENT, urls)
        self._urls = None if _ARGUMENT in self.arguments else urls
        parameters.require(self.arguments)
        self._parameters = parameters

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this crawl from others: not how fast it is, nor through which proxy."""
        return self.arguments | ({START_URLS: [*map(list, self._starts)]} if self._starts else {})

    def merged(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a spider that was started with these, which win."""
        placed = self._parameters.names[: len(args)]
        given = {name: value for name, value in self.arguments.items() if name not in placed}
        return {**given, **kwargs}

    def set_settings(self, settings: BaseSettings) -> None:
        for name, value in self._settings.items():
            settings.set(name, value, _PRIORITY)

    def set_start_urls(self, spider: Spider, kwargs: Mapping[str, Any]) -> None:
        if self._urls and _ARGUMENT not in kwargs:
            spider.start_urls = list(self._urls)

    def start_requests(self, callbacks: Mapping[str, str]) -> StartRequests:
        return StartRequests(self._starts, callbacks)


class _Parameters:
    """What a spider class takes as arguments."""

    def __init__(self, spidercls: type[Spider]) -> None:
        self._spidercls = spidercls
        declared = list(inspect.signature(spidercls.__init__).parameters.values())[1:]
        if spidercls.__init__.__module__.startswith("scrapy."):  # its "name" is the spider's
            declared = [one for one in declared if one.kind in _VARIABLE]
        self._declared = {one.name: one for one in declared if one.kind not in _VARIABLE}
        self.names = tuple(self._declared)
        is_scrapys = spidercls.from_crawler.__func__.__module__.startswith("scrapy.")  # type: ignore[attr-defined]
        self._takes_any = not is_scrapys or any(
            one.kind is inspect.Parameter.VAR_KEYWORD for one in declared
        )
        self._is_known = is_scrapys

    def has(self, name: str) -> bool:
        return name in self._declared

    def name_for(self, field: str) -> str | None:
        """The parameter for this field: Apify's fields are in camel case, Python's names not."""
        if field == START_URLS:  # its form is not that of Scrapy's start_urls
            return field if field in self._declared else None
        snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", field).lower()
        return next((name for name in (field, snake) if name in self._declared), None)

    def check(self, field: str, argument: str) -> None:
        if argument in self._declared:
            return
        spider = self._spidercls.__name__
        if not self._takes_any:
            raise ConfigError(
                f"{field}: {spider}.__init__ takes no such argument. It takes:"
                f" {', '.join(self._declared) or 'none'}"
            )
        # Scrapy would replace an argument of these names, and a property would hide it.
        known = inspect.getattr_static(self._spidercls, argument, None)
        is_taken = argument in ("cls", "crawler", "name", "self", "settings")
        if is_taken or callable(known) or isinstance(known, property):
            raise ConfigError(
                f"{field}: {spider} or Scrapy has something else of this name. Rename the field,"
                f" or let {spider}.__init__ take an argument of this name"
            )

    def require(self, arguments: Mapping[str, Any]) -> None:
        given = scrapy_private.command_line_arguments()
        if given is None or not self._is_known:
            return
        for name, parameter in self._declared.items():
            if parameter.default is parameter.empty and name not in arguments.keys() | given:
                field = START_URLS if name == _ARGUMENT else name
                raise ConfigError(
                    f"{field}: {self._spidercls.__name__}.__init__ needs it. Add this field to the"
                    f" input, or give the argument {name} a default"
                )


_VARIABLE: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OF_CRAWLERS: WeakKeyDictionary[Crawler, SpiderInput] = WeakKeyDictionary()


def input_of(crawler: Crawler) -> SpiderInput | None:
    """What the spider of this crawl has been given; None outside of a run."""
    return _OF_CRAWLERS.get(crawler)


def install(settings: BaseSettings) -> None:
    """Let the spider loader of these settings give spiders the input, if this is a run."""
    if not _is_run(settings):
        return
    loader = load_object(settings["SPIDER_LOADER_CLASS"])
    if not hasattr(loader, "gives_input"):
        priority = settings.getpriority("SPIDER_LOADER_CLASS") or 0
        settings.set("SPIDER_LOADER_CLASS", _giving(loader), priority)


def report_missing(crawler: Crawler) -> None:
    """Say so if this is a run whose input the spider has not been given."""
    if input_of(crawler) is None and scrapy_private.is_crawl(crawler) and _is_run(crawler.settings):
        logger.info(
            "The input of this Actor run is not given to the spider, since the crawl was started"
            " with the spider's class. Start it by its name, or pass the input yourself"
        )


def _is_run(settings: BaseSettings) -> bool:
    try:
        config = Config.from_settings(settings, os.environ, None)
    except ConfigError:  # the crawl itself reports it, in its place
        return False
    return config.enabled and has_input(config)


def _giving(base: Any) -> type:
    class LoaderWithInput(base):  # type: ignore[misc]
        gives_input = True

        @classmethod
        def from_settings(cls, settings: BaseSettings) -> Any:
            loader = super().from_settings(settings)
            loader.settings_for_input = settings
            return loader

        def load(self, spider_name: str) -> type[Spider]:
            spidercls: type[Spider] = super().load(spider_name)
            settings = Settings()
            settings.update(self.settings_for_input)
            spidercls.update_settings(settings)
            if _is_run(settings):
                give(spidercls, Config.from_settings(settings, os.environ, None))
            return spidercls

    return LoaderWithInput


def give(spidercls: type[Spider], config: Config) -> None:
    """Let each spider of this class have the run's input from now on.

    Raises UsageError if the input is not valid. If it cannot be read, this ends a ``scrapy``
    command, and raises BackendError in a script.
    """
    try:
        given = SpiderInput(spidercls, read_input(config))
    except ConfigError as error:
        problem = f"The input of this Actor run is not valid: {error}"
        tell_before_start(config, problem)
        raise UsageError(problem) from error
    except BackendError as error:
        tell_before_start(config, str(error))
        if not scrapy_private.is_command():
            raise
        # Scrapy would show a traceback, since it has not made a crawler yet.
        logger.error("%s", error)
        raise SystemExit(1) from error
    found = vars(spidercls).get("from_crawler")
    own = getattr(found, "of_the_project", found)

    def from_crawler(cls: type[Spider], crawler: Crawler, *args: Any, **kwargs: Any) -> Spider:
        parent: Any = super(spidercls, cls)
        make = parent.from_crawler if own is None else own.__get__(None, cls)
        given.set_settings(crawler.settings)
        spider: Spider = make(crawler, *args, **given.merged(args, kwargs))
        given.set_start_urls(spider, kwargs)
        _OF_CRAWLERS[crawler] = given
        return spider

    replaced: Any = classmethod(from_crawler)
    replaced.of_the_project = own
    spidercls.from_crawler = replaced  # type: ignore[method-assign]
