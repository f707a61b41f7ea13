"""Every setting once: its name, its default, what it may be, and what to write instead.

This package's settings and Apify's environment variables are read here and nowhere else, by
``Config.from_settings`` or, where one of them is enough, by a function of its own. It is strict,
because a crawl that runs for hours on a misspelt setting costs more than one that does not start:
whatever is wrong raises ``ConfigError``, which names the setting and the cure.

It looks at values only. Whether the folder can be written, the queue exists or the spider has
the callback is for those to say who use them.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from scrapy.settings import BaseSettings

from scrapy_apify_rq.entries.models import read_date
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.limits import (
    CLIENT_KEY_LENGTH,
    ID_LENGTH,
    NAME_LENGTH,
    is_id,
    is_name,
)

# The only copy of the defaults, and the list of the names that exist. A default of None means
# "decided by the rest": see Config.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "APIFY_TOKEN": None,
        "APIFY_API_BASE_URL": "https://api.apify.com",
        "APIFY_RQ_ENABLED": True,
        "APIFY_RQ_BACKEND": "auto",
        "APIFY_RQ_ID": None,
        "APIFY_RQ_NAME": None,
        "APIFY_RQ_STORAGE_DIR": "./storage",
        "APIFY_RQ_ACCESS": "single",
        "APIFY_RQ_CLIENT_KEY": None,
        "APIFY_RQ_LOCK_SECS": 180,
        "APIFY_RQ_ORDER": "fifo",
        "APIFY_RQ_RETRY_FOREFRONT": True,
        "APIFY_RQ_RETRY_SPIDER_ERRORS": 0,
        "APIFY_RQ_UNIQUE_KEY": "fingerprint",
        "APIFY_RQ_CALLBACKS": {},
        "APIFY_RQ_TRUSTED_MODULES": [],
        "APIFY_RQ_PURGE_ON_START": False,
        "APIFY_RQ_WINDOW": 1000,
        "APIFY_RQ_OUTBOX": 2000,
        "APIFY_RQ_MEMORY_MB": 64,
        "APIFY_RQ_GC_FREEZE": False,
        "APIFY_RQ_IDLE_BEFORE_CLOSE": 0,
        "APIFY_RQ_PROGRESS": False,
        "APIFY_RQ_UNAVAILABLE_TIMEOUT": 600,
    }
)

# The newer name first: https://docs.apify.com/platform/actors/development/programming-interface/environment-variables
_DEFAULT_QUEUE_VARIABLES = ("ACTOR_DEFAULT_REQUEST_QUEUE_ID", "APIFY_DEFAULT_REQUEST_QUEUE_ID")
_STORAGE_DIR_VARIABLES = ("CRAWLEE_STORAGE_DIR", "APIFY_LOCAL_STORAGE_DIR")
_RUN_ID_VARIABLES = ("ACTOR_RUN_ID", "APIFY_ACTOR_RUN_ID", "APIFY_ACT_RUN_ID")
_EVENTS_VARIABLES = ("ACTOR_EVENTS_WEBSOCKET_URL", "APIFY_ACTOR_EVENTS_WS_URL")
_TIMEOUT_VARIABLES = ("ACTOR_TIMEOUT_AT", "APIFY_TIMEOUT_AT")
# What the Apify CLI puts there for a local run. No queue of the platform has this id.
_LOCAL_DEFAULT_QUEUE = "default"

_USERNAME = re.compile(r"[a-zA-Z0-9_.-]*")

_NAME_CURE = (
    f"a queue name has 1 to {NAME_LENGTH} letters, digits and hyphens, with no hyphen at either "
    "end, for example 'my-queue'"
)
_ID_CURE = (
    f"write the queue's id ({ID_LENGTH} letters and digits), 'username~name', or '~name' for a "
    "queue of your own; a plain name goes into APIFY_RQ_NAME"
)
_URL_CURE = "write an address such as 'https://api.apify.com' or 'http://127.0.0.1:8080'"

T = TypeVar("T")
ChoiceT = TypeVar("ChoiceT", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one crawl, checked and resolved."""

    enabled: bool
    backend: Literal["apify", "sqlite"]
    token: str | None = field(repr=False)
    api_base_url: str
    """Without a slash or ``/v2`` at its end."""
    queue_id: str | None
    """Either this or ``queue_name`` is set, if a spider is known. An id, ``username~name`` or
    ``~name``."""
    queue_name: str | None
    queue_is_default: bool
    """Nobody named the queue, so a finished one starts afresh."""
    storage_dir: Path
    access: Literal["single", "shared"]
    client_key: str | None
    """None lets the backend choose."""
    lock_secs: int
    order: Literal["fifo", "lifo"]
    retry_forefront: bool
    retry_spider_errors: int
    unique_key: Literal["fingerprint", "crawlee"]
    callbacks: Mapping[str, str]
    trusted_modules: tuple[str, ...]
    purge_on_start: bool
    window: int
    outbox: int
    memory: int
    """Bytes that entries may take in memory."""
    gc_freeze: bool
    idle_before_close: float
    progress: bool
    unavailable_timeout: float
    events_url: str | None = field(repr=False)
    """Where an Actor run is told what the platform does with it; None outside of one."""
    timeout_at: datetime | None
    """When the platform ends the Actor run; None if it does not, or outside of one."""

    @classmethod
    def from_settings(
        cls, settings: BaseSettings, environ: Mapping[str, str], spider_name: str | None
    ) -> Config:
        """Read all settings, or raise ``ConfigError`` for the first thing that is wrong.

        With no spider known, there is no default queue: the settings may name none at all.
        """
        _refuse_unknown_names(settings)
        token = _token(settings, environ)
        backend = _backend(settings, token)
        queue = _queue(settings, environ, spider_name, backend)
        config = cls(
            enabled=is_enabled(settings),
            backend=backend,
            token=token,
            api_base_url=_api_base_url(settings, environ),
            queue_id=queue.id,
            queue_name=queue.name,
            queue_is_default=queue.is_default,
            storage_dir=storage_dir(settings, environ),
            access=_choice(settings, "APIFY_RQ_ACCESS", ("single", "shared")),
            client_key=_client_key(settings, environ),
            lock_secs=_integer(settings, "APIFY_RQ_LOCK_SECS", minimum=1),
            order=_choice(settings, "APIFY_RQ_ORDER", ("fifo", "lifo")),
            retry_forefront=_boolean(settings, "APIFY_RQ_RETRY_FOREFRONT"),
            retry_spider_errors=_integer(settings, "APIFY_RQ_RETRY_SPIDER_ERRORS", minimum=0),
            unique_key=_choice(settings, "APIFY_RQ_UNIQUE_KEY", ("fingerprint", "crawlee")),
            callbacks=_callbacks(settings),
            trusted_modules=_trusted_modules(settings),
            purge_on_start=_boolean(settings, "APIFY_RQ_PURGE_ON_START"),
            window=_integer(settings, "APIFY_RQ_WINDOW", minimum=1),
            outbox=_integer(settings, "APIFY_RQ_OUTBOX", minimum=1),
            memory=_integer(settings, "APIFY_RQ_MEMORY_MB", minimum=1) * 2**20,
            gc_freeze=_boolean(settings, "APIFY_RQ_GC_FREEZE"),
            idle_before_close=_seconds(settings, "APIFY_RQ_IDLE_BEFORE_CLOSE", zero=True),
            progress=_boolean(settings, "APIFY_RQ_PROGRESS"),
            unavailable_timeout=_seconds(settings, "APIFY_RQ_UNAVAILABLE_TIMEOUT", zero=False),
            events_url=_events_url(environ),
            timeout_at=_timeout_at(environ),
        )
        # Who has switched the scheduler off must not be stopped by what it would need when on.
        if config.enabled:
            _require_token(config)
            _refuse_purge_by_many(config)
        return config


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


# Errors


def _wrong(name: str, value: object, cure: str) -> ConfigError:
    return ConfigError(f"{name} = {_shown(value)}: {cure}")


def _shown(value: object) -> str:
    """The value for a message; a token pasted into the wrong setting must not reach the log."""
    text = re.sub(r"apify_(?:api|proxy)_\w+", "<token>", repr(value))
    return text if len(text) <= 100 else f"{text[:100]}..."


def _nearest(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.5)), None)


def _refuse_unknown_names(settings: BaseSettings) -> None:
    # Scrapy's names are case-sensitive: apify_rq_name would be ignored without a word.
    names = [name for name in settings if name.upper().startswith("APIFY_RQ_")]
    unknown = sorted(name for name in names if name not in DEFAULTS)
    if unknown:
        raise ConfigError(" ".join(_unknown(name) for name in unknown))


def _unknown(name: str) -> str:
    # Without the prefix, which would make every two names look alike.
    words = {re.sub("^APIFY_(RQ_)?", "", known): known for known in DEFAULTS}
    nearest = _nearest(name.upper().removeprefix("APIFY_RQ_"), words)
    if nearest is None:
        return f"Unknown setting {name}: there are {', '.join(DEFAULTS)}."
    return f"Unknown setting {name}: did you mean {words[nearest]}?"


# Kinds of values. The command line gives strings, which Scrapy's own getters convert.


def _convert(
    settings: BaseSettings,
    name: str,
    kinds: tuple[type, ...],
    getter: Callable[[str, Any], T],
    cure: str,
) -> T:
    raw = settings.get(name, DEFAULTS[name])
    # A bool is an int to Python and never meant as one: WINDOW = True is a slip.
    if not isinstance(raw, kinds) or (isinstance(raw, bool) and bool not in kinds):
        raise _wrong(name, raw, cure)
    try:
        return getter(name, DEFAULTS[name])
    except (TypeError, ValueError, OverflowError):
        # "from None": the original error repeats the value, and says less.
        raise _wrong(name, raw, cure) from None


def _boolean(settings: BaseSettings, name: str) -> bool:
    return _convert(settings, name, (bool, int, str), settings.getbool, "write True or False")


def _integer(settings: BaseSettings, name: str, *, minimum: int) -> int:
    cure = f"write a whole number of at least {minimum}, for example {DEFAULTS[name]}"
    # No float: getint would cut 2.7 to 2.
    number = _convert(settings, name, (int, str), settings.getint, cure)
    if number < minimum:
        raise _wrong(name, settings[name], cure)
    return number


def _seconds(settings: BaseSettings, name: str, *, zero: bool) -> float:
    bound = "of at least 0" if zero else "above 0"
    cure = f"write a number of seconds {bound}, for example {DEFAULTS[name]}"
    number = _convert(settings, name, (int, float, str), settings.getfloat, cure)
    # NaN is neither above nor below anything; infinity fails later, in int() or time.sleep().
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise _wrong(name, settings[name], cure)
    return number


def _choice(settings: BaseSettings, name: str, choices: tuple[ChoiceT, ...]) -> ChoiceT:
    raw = settings.get(name, DEFAULTS[name])
    for choice in choices:
        if raw == choice:
            return choice
    nearest = _nearest(str(raw).lower(), choices)
    hint = f" (did you mean {nearest!r}?)" if nearest else ""
    raise _wrong(name, raw, f"write one of {', '.join(map(repr, choices))}{hint}")


def _text(settings: BaseSettings, name: str, cure: str) -> str | None:
    """Without surrounding space; empty is unset, as ``os.environ.get(..., "")`` gives it."""
    raw = settings.get(name)
    if raw is not None and not isinstance(raw, str):
        raise _wrong(name, raw, cure)
    return (raw or "").strip() or None


def _variable(environ: Mapping[str, str], names: Iterable[str]) -> tuple[str, str] | None:
    """The first variable that is set, named as in messages. Empty is unset, as Apify has it."""
    for name in names:
        if value := environ.get(name, "").strip():
            return f"{name} (environment variable)", value
    return None


# Single settings, in the order of DEFAULTS


def is_enabled(settings: BaseSettings) -> bool:
    """Whether the project wants the request queue; for who needs no more of the settings."""
    return _boolean(settings, "APIFY_RQ_ENABLED")


def _token(settings: BaseSettings, environ: Mapping[str, str]) -> str | None:
    for value in (settings.get("APIFY_TOKEN"), environ.get("APIFY_TOKEN")):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        # It goes into a header, where other characters fail with an error that shows the header.
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value.strip()):
            raise ConfigError(
                "APIFY_TOKEN (not shown here) is not a text of ASCII characters without spaces: "
                "copy it anew from https://console.apify.com/settings/integrations"
            )
        return value.strip()
    return None


def _api_base_url(settings: BaseSettings, environ: Mapping[str, str]) -> str:
    name = "APIFY_API_BASE_URL"
    if configured := _text(settings, name, _URL_CURE):
        return _checked_url(name, configured, internal=False)
    if variable := _variable(environ, [name]):
        # Inside the platform this variable holds an internal plain-http address: the token stays
        # in Apify's own network. A setting is the project's, and goes anywhere.
        return _checked_url(*variable, internal=environ.get("APIFY_IS_AT_HOME") == "1")
    return str(DEFAULTS[name])


def _checked_url(source: str, url: str, *, internal: bool) -> str:
    # Whatever else is wrong with an address, its password or query is not for the log.
    shown = re.sub(r"//.*@", "//...@", re.sub(r"[?#].*", "", url, flags=re.DOTALL))
    try:
        parts = urlsplit(url)
        plain = _is_plain_address(url, parts)
    except ValueError:
        plain = False
    if not plain:
        cure = f"not an http(s) address without user, query and fragment; {_URL_CURE}"
        raise _wrong(source, shown, cure)
    if parts.scheme == "http" and not internal and not is_loopback(parts.hostname or ""):
        reason = "the token would travel unencrypted; write https:// or a loopback address"
        raise _wrong(source, shown, reason)
    path = parts.path.rstrip("/").removesuffix("/v2").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_plain_address(url: str, parts: SplitResult) -> bool:
    # Reading the port is what checks it: urlsplit itself accepts any.
    complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    return bool(complete) and not re.search(r"[\s?#@\\]", url)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _backend(settings: BaseSettings, token: str | None) -> Literal["apify", "sqlite"]:
    chosen: Literal["auto", "apify", "sqlite"] = _choice(
        settings, "APIFY_RQ_BACKEND", ("auto", "apify", "sqlite")
    )
    if chosen == "auto":
        return "apify" if token else "sqlite"
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queue:
    id: str | None = None
    name: str | None = None
    is_default: bool


def _queue(
    settings: BaseSettings, environ: Mapping[str, str], spider_name: str | None, backend: str
) -> _Queue:
    bot_name = settings.get("BOT_NAME", "")
    derived = None if spider_name is None else _derived_name(bot_name, spider_name)
    return (
        _named_queue(settings)
        or _default_queue_of_run(environ, backend)
        or _Queue(name=derived, is_default=True)
    )


def _named_queue(settings: BaseSettings) -> _Queue | None:
    queue_id = _text(settings, "APIFY_RQ_ID", _ID_CURE)
    name = _text(settings, "APIFY_RQ_NAME", _NAME_CURE)
    if queue_id and name:
        both = f"APIFY_RQ_ID = {_shown(queue_id)} and APIFY_RQ_NAME = {_shown(name)}"
        raise ConfigError(f"{both} both say which queue: remove one of them")
    if queue_id:
        return _Queue(id=_checked_id("APIFY_RQ_ID", queue_id), is_default=False)
    if name:
        return _Queue(name=_checked_name("APIFY_RQ_NAME", name), is_default=False)
    return None


def _default_queue_of_run(environ: Mapping[str, str], backend: str) -> _Queue | None:
    variable = _variable(environ, _DEFAULT_QUEUE_VARIABLES)
    if variable is None:
        return None
    if backend == "sqlite":
        return _Queue(name=_checked_name(*variable), is_default=True)
    if variable[1] == _LOCAL_DEFAULT_QUEUE:
        # A local run with a token: asking the API for a queue of this id would only give a 404.
        return None
    return _Queue(id=_checked_id(*variable), is_default=True)


def _checked_id(source: str, value: str) -> str:
    username, tilde, name = value.partition("~")
    own = tilde and _USERNAME.fullmatch(username) and is_name(name)
    if not own and not is_id(value):
        raise _wrong(source, value, _ID_CURE)
    return value


def _checked_name(source: str, value: str) -> str:
    if not is_name(value):
        raise _wrong(source, value, _NAME_CURE)
    return value


def _derived_name(bot_name: str, spider_name: str) -> str:
    original = f"{bot_name}-{spider_name}"
    if is_name(original):
        return original
    # Spiders "a.b" and "a_b" must not crawl each other's queue.
    digest = hashlib.sha256(original.encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-zA-Z0-9-]", "-", original)[: NAME_LENGTH - len(digest) - 1]
    return f"{readable.strip('-')}-{digest}".lstrip("-")


def storage_dir(settings: BaseSettings, environ: Mapping[str, str]) -> Path:
    """The folder of the embedded queues."""
    name = "APIFY_RQ_STORAGE_DIR"
    source, raw = name, settings.get(name)
    if raw is None or raw == "":
        source, raw = _variable(environ, _STORAGE_DIR_VARIABLES) or (name, DEFAULTS[name])
    try:
        return Path(raw).expanduser().absolute()
    except (TypeError, RuntimeError):
        # RuntimeError: the home of a "~user" that does not exist.
        raise _wrong(source, raw, "write the path of a folder, such as './storage'") from None


def _client_key(settings: BaseSettings, environ: Mapping[str, str]) -> str | None:
    raw = settings.get("APIFY_RQ_CLIENT_KEY")
    if raw is None:
        # The same after a migration or a resurrection, so that the run finds its leases again.
        run = _variable(environ, _RUN_ID_VARIABLES)
        return run[1][:CLIENT_KEY_LENGTH] if run else None
    if not isinstance(raw, str) or not 1 <= len(raw) <= CLIENT_KEY_LENGTH:
        cure = f"write a text of 1 to {CLIENT_KEY_LENGTH} characters, or None"
        raise _wrong("APIFY_RQ_CLIENT_KEY", raw, cure)
    return raw


def _callbacks(settings: BaseSettings) -> Mapping[str, str]:
    name = "APIFY_RQ_CALLBACKS"
    cure = "write a dict of labels and names of spider methods, such as {'DETAIL': 'parse_detail'}"
    raw = settings.get(name)
    # dict() makes {'a': 'b'} of the list ["ab"], so getdict would let it pass.
    if isinstance(raw, str) and not raw.lstrip().startswith("{"):
        raise _wrong(name, raw, cure)
    callbacks = _convert(settings, name, (Mapping, str), settings.getdict, cure)
    for label, method in callbacks.items():
        if not (isinstance(label, str) and isinstance(method, str) and method.isidentifier()):
            raise _wrong(name, raw, cure)
    return MappingProxyType(callbacks)


def _trusted_modules(settings: BaseSettings) -> tuple[str, ...]:
    name = "APIFY_RQ_TRUSTED_MODULES"
    cure = "write a list of module names, such as ['my_project.items']"
    kinds = (list, tuple, set, frozenset, str)
    modules = _convert(settings, name, kinds, settings.getlist, cure)
    names = [module.strip() if isinstance(module, str) else "" for module in modules]
    if not all(part.isidentifier() for module in names for part in module.split(".")):
        raise _wrong(name, settings[name], cure)
    return tuple(names)


# What only the environment of an Actor run has.


def _events_url(environ: Mapping[str, str]) -> str | None:
    variable = _variable(environ, _EVENTS_VARIABLES)
    return variable[1] if variable else None


def _timeout_at(environ: Mapping[str, str]) -> datetime | None:
    variable = _variable(environ, _TIMEOUT_VARIABLES)
    if variable is None:
        return None
    try:
        return read_date(variable[1])
    except ValueError:
        cure = "write a time such as 2030-01-31T12:00:00.000Z, or unset the variable"
        raise _wrong(*variable, cure) from None
