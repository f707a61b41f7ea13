"""How the value of each setting is read, from Scrapy's settings and the environment.

A reader takes the source and the setting's name, and returns the value or raises ``ConfigError``,
which names the setting and the cure. ``config`` says which setting has which reader.

Readers look at values only. Whether the folder can be written, the queue exists or the spider has
the callback is checked where it is used.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

from scrapy.settings import BaseSettings

from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.identity import NO_ARGUMENTS, Arguments, default_name
from scrapy_apify_rq.limits import CLIENT_KEY_LENGTH, ID_LENGTH, NAME_LENGTH, is_id, is_name

# The newer name first: https://docs.apify.com/platform/actors/development/programming-interface/environment-variables
_DEFAULT_QUEUE_VARIABLES: Final = (
    "ACTOR_DEFAULT_REQUEST_QUEUE_ID",
    "APIFY_DEFAULT_REQUEST_QUEUE_ID",
)
_DATASET_VARIABLES: Final = ("ACTOR_DEFAULT_DATASET_ID", "APIFY_DEFAULT_DATASET_ID")
STORE_VARIABLES: Final = (
    "ACTOR_DEFAULT_KEY_VALUE_STORE_ID",
    "APIFY_DEFAULT_KEY_VALUE_STORE_ID",
)
STORAGE_DIR_VARIABLES: Final = ("CRAWLEE_STORAGE_DIR", "APIFY_LOCAL_STORAGE_DIR")
RUN_ID_VARIABLES: Final = ("ACTOR_RUN_ID", "APIFY_ACTOR_RUN_ID", "APIFY_ACT_RUN_ID")
_EVENTS_VARIABLES: Final = ("ACTOR_EVENTS_WEBSOCKET_URL", "APIFY_ACTOR_EVENTS_WS_URL")
_TIMEOUT_VARIABLES: Final = ("ACTOR_TIMEOUT_AT", "APIFY_TIMEOUT_AT")
# Local runs have it as the id of their storages. On the platform, none has this id.
LOCAL_DEFAULT_STORAGE: Final = "default"

_COMPONENTS: Final = (
    "ADDONS",
    "DOWNLOAD_HANDLERS",
    "DOWNLOADER_MIDDLEWARES",
    "EXTENSIONS",
    "ITEM_PIPELINES",
    "SPIDER_MIDDLEWARES",
)
# Packages whose classes users of a plugin hold, besides those of the plugin itself.
_COMPANIONS: Final = {
    "scrapy_poet": ("web_poet",),
    "scrapy_zyte_api": ("web_poet", "zyte_common_items"),
}
_SCHEME: Final = re.compile("[a-z][a-z0-9+.-]{0,15}")
_USERNAME: Final = re.compile(r"[a-zA-Z0-9_.-]*")

_NAME_CURE: Final = (
    f"a queue name has 1 to {NAME_LENGTH} letters, digits and hyphens, with no hyphen at either "
    "end, for example 'my-queue'"
)
_ID_CURE: Final = (
    f"write the queue's id ({ID_LENGTH} letters and digits), 'username~name', or '~name' for a "
    "queue of your own; a plain name goes into APIFY_RQ_NAME"
)
_DATASET_CURE: Final = (
    "write a dataset's name, such as 'my-items', its id, 'username~name', or None for that of the "
    "Actor run, or else one that is named after the queue"
)
_URL_CURE: Final = "write an address such as 'https://api.apify.com' or 'http://127.0.0.1:8080'"

T = TypeVar("T")
ChoiceT = TypeVar("ChoiceT", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where values come from."""

    settings: BaseSettings
    environ: Mapping[str, str]
    defaults: Mapping[str, Any]
    spider_name: str | None = None
    arguments: Arguments | None = field(default=NO_ARGUMENTS, repr=False)
    """The spider's; None if they are unknown."""

    def get(self, name: str) -> Any:
        """Return the value as it is written, or the default."""
        return self.settings.get(name, self.defaults[name])

    def convert(
        self, name: str, kinds: tuple[type, ...], getter: Callable[[str, Any], T], cure: str
    ) -> T:
        """Convert with one of Scrapy's getters, as the command line gives only texts."""
        raw = self.get(name)
        # A bool is an int to Python and never meant as one: WINDOW = True is a slip.
        if not isinstance(raw, kinds) or (isinstance(raw, bool) and bool not in kinds):
            raise wrong(name, raw, cure)
        try:
            return getter(name, self.defaults[name])
        except (TypeError, ValueError, OverflowError):
            # "from None": the original error repeats the value, and says less.
            raise wrong(name, raw, cure) from None

    def text(self, name: str, cure: str) -> str | None:
        """Strip surrounding space. Empty is unset, as ``os.environ.get(..., "")`` gives it."""
        raw = self.settings.get(name)
        if raw is not None and not isinstance(raw, str):
            raise wrong(name, raw, cure)
        return (raw or "").strip() or None

    def variable(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the first variable that is set, with its name for messages.

        An empty one is unset, as in Apify's own SDK.
        """
        for name in names:
            if value := self.environ.get(name, "").strip():
                return f"{name} (environment variable)", value
        return None


Reader: TypeAlias = Callable[[Source, str], T]


# Errors


def wrong(name: str, value: object, cure: str) -> ConfigError:
    return ConfigError(f"{name} = {_shown(value)}: {cure}")


def _shown(value: object) -> str:
    """Write the value for a message. A token in the wrong setting must not reach the log."""
    text = re.sub(r"apify_(?:api|proxy)_\w+", "<token>", repr(value))
    return text if len(text) <= 100 else f"{text[:100]}..."


def nearest(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.5)), None)


# Kinds of values


def boolean(source: Source, name: str) -> bool:
    getter = source.settings.getbool
    return source.convert(name, (bool, int, str), getter, "write True or False")


def whole(*, minimum: int) -> Reader[int]:
    """A whole number."""

    def read(source: Source, name: str) -> int:
        example = source.defaults[name]
        cure = f"write a whole number of at least {minimum}, for example {example}"
        # Not from a float: getint would cut 2.7 to 2.
        number = source.convert(name, (int, str), source.settings.getint, cure)
        if number < minimum:
            raise wrong(name, source.get(name), cure)
        return number

    return read


def megabytes(*, minimum: int) -> Reader[int]:
    """A whole number of megabytes, as bytes."""
    read = whole(minimum=minimum)
    return lambda source, name: read(source, name) * 2**20


def seconds(*, zero: bool) -> Reader[float]:
    """A number of seconds; ``zero`` says whether it may be 0."""

    def read(source: Source, name: str) -> float:
        bound = "of at least 0" if zero else "above 0"
        cure = f"write a number of seconds {bound}, for example {source.defaults[name]}"
        number = source.convert(name, (int, float, str), source.settings.getfloat, cure)
        # NaN is neither above nor below anything; infinity fails later, in int() or time.sleep().
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise wrong(name, source.get(name), cure)
        return number

    return read


def choice(*choices: ChoiceT) -> Reader[ChoiceT]:
    def read(source: Source, name: str) -> ChoiceT:
        raw = source.get(name)
        for one in choices:
            if raw == one:
                return one
        near = nearest(str(raw).lower(), choices)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise wrong(name, raw, f"write one of {', '.join(map(repr, choices))}{hint}")

    return read


def items(source: Source, name: str) -> bool | Literal["auto"]:
    if source.get(name) == "auto":
        return "auto"
    cure = "write 'auto', True or False"
    return source.convert(name, (bool, int, str), source.settings.getbool, cure)


def dataset(source: Source, name: str) -> str | None:
    if (value := source.text(name, _DATASET_CURE)) is None:
        return _storage_of_run(source, _DATASET_VARIABLES)
    user, _, last = value.rpartition("~")
    if not (_USERNAME.fullmatch(user) and is_name(last)):
        raise wrong(name, value, _DATASET_CURE)
    return value


def run_store(source: Source) -> str | None:
    queue = _queue(source)
    is_of_run = queue.is_default and queue.id is not None
    return _storage_of_run(source, STORE_VARIABLES) if is_of_run else None


def _storage_of_run(source: Source, variables: Iterable[str]) -> str | None:
    variable = source.variable(variables)
    if variable is None or variable[1] == LOCAL_DEFAULT_STORAGE:
        return None  # a local run with a token: the API would answer 404
    if not is_id(variable[1]):
        raise wrong(*variable, f"an id has {ID_LENGTH} letters and digits; unset the variable")
    return variable[1]


KeyKind: TypeAlias = Literal["fingerprint", "url", "url-js", "extended"]
_read_key_kind: Final = choice("fingerprint", "url", "url-js", "extended")


def key_kind(source: Source, name: str) -> KeyKind:
    if source.get(name) == "crawlee":
        cure = (
            "it is now called 'extended', the keys of apify.scrapy. For a queue of Crawlee itself,"
            " write 'url' (Crawlee for Python) or 'url-js' (Crawlee for JavaScript)"
        )
        raise wrong(name, "crawlee", cure)
    kind: KeyKind = _read_key_kind(source, name)  # type: ignore[assignment]
    return kind


# The token and the address of the API


def token(source: Source, name: str) -> str | None:
    for value in (source.settings.get(name), source.environ.get(name)):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        # It goes into a header, where other characters fail with an error that shows the header.
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value.strip()):
            raise ConfigError(
                f"{name} (not shown here) is not a text of ASCII characters without spaces: "
                "copy it anew from https://console.apify.com/settings/integrations"
            )
        return value.strip()
    return None


def api_base_url(source: Source, name: str) -> str:
    if configured := source.text(name, _URL_CURE):
        return _checked_url(name, configured, internal=False)
    if variable := source.variable([name]):
        # Inside the platform this variable holds an internal plain-http address: the token stays
        # in Apify's own network. A setting comes from the project and may lead anywhere.
        return _checked_url(*variable, internal=is_at_home(source))
    return str(source.defaults[name])


def _checked_url(origin: str, url: str, *, internal: bool) -> str:
    # An address may hold a password or a query, which must not reach the log. A password may hold
    # any of these signs, and so may a query.
    shown = "..." if "@" in url else re.sub(r"[?#].*", "", url, flags=re.DOTALL)
    try:
        parts = urlsplit(url)
        plain = _is_plain_address(url, parts)
    except ValueError:
        plain = False
    if not plain:
        cure = f"not an http(s) address without user, query and fragment; {_URL_CURE}"
        raise wrong(origin, shown, cure)
    if parts.scheme == "http" and not internal and not is_loopback(parts.hostname or ""):
        reason = "the token would travel unencrypted; write https:// or a loopback address"
        raise wrong(origin, shown, reason)
    path = parts.path.rstrip("/").removesuffix("/v2").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_plain_address(url: str, parts: SplitResult) -> bool:
    # Reading the port is what checks it: urlsplit itself accepts any.
    complete = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    return bool(complete) and not re.search(r"[\s?#@\\]", url)


def is_loopback(host: str) -> bool:
    """Return True if the host is certain to be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# The backend and its queue


class _Queue(NamedTuple):
    id: str | None
    name: str | None
    is_default: bool


def backend(source: Source, name: str) -> Literal["apify", "sqlite"]:
    choices: Reader[Literal["auto", "apify", "sqlite"]] = choice("auto", "apify", "sqlite")
    chosen = choices(source, name)
    if chosen == "auto":
        has_token = token(source, "APIFY_TOKEN") is not None
        return "apify" if has_token and not _is_token_of_cli(source) else "sqlite"
    return chosen


def _is_token_of_cli(source: Source) -> bool:
    """Whether ``apify run`` has set the token, as it does for each user who is logged in.

    That user wants a run on this machine, and has not asked for a queue in the cloud.
    """
    return (
        source.variable(STORAGE_DIR_VARIABLES) is not None
        and not is_at_home(source)
        and not source.settings.get("APIFY_TOKEN")
        and not source.settings.get("APIFY_API_BASE_URL")
        and source.variable(["APIFY_API_BASE_URL"]) is None
    )


def is_at_home(source: Source) -> bool:
    """Whether this is a run on Apify's platform."""
    return source.environ.get("APIFY_IS_AT_HOME") == "1"


def queue_id(source: Source, name: str) -> str | None:
    return _queue(source).id


def queue_name(source: Source, name: str) -> str | None:
    if not queue_is_of_spider(source):
        return _queue(source).name
    assert source.spider_name is not None
    if source.arguments is None:
        raise ConfigError(
            "The default queue is that of the spider's arguments, and with this version of Scrapy,"
            " or this way of crawling, they cannot be found: name the queue with APIFY_RQ_NAME"
        )
    bot = source.settings.get("BOT_NAME", "")
    return default_name(bot, source.spider_name, source.arguments.canonical)


def queue_is_default(source: Source) -> bool:
    return _queue(source).is_default


def queue_is_of_spider(source: Source) -> bool:
    queue = _queue(source)
    return source.spider_name is not None and queue.id is None and queue.name is None


def arguments(source: Source) -> Arguments:
    return (queue_is_of_spider(source) and source.arguments) or NO_ARGUMENTS


def _queue(source: Source) -> _Queue:
    """Return the queue that the settings name, else that of the Actor run.

    Without either it is the spider's.
    """
    queue = _named_queue(source) or _queue_of_run(source)
    return queue or _Queue(None, None, is_default=True)


def _named_queue(source: Source) -> _Queue | None:
    id = source.text("APIFY_RQ_ID", _ID_CURE)
    name = source.text("APIFY_RQ_NAME", _NAME_CURE)
    if id and name:
        both = f"APIFY_RQ_ID = {_shown(id)} and APIFY_RQ_NAME = {_shown(name)}"
        raise ConfigError(f"{both} both say which queue: remove one of them")
    if id:
        return _Queue(_checked_id("APIFY_RQ_ID", id), None, is_default=False)
    if name:
        return _Queue(None, _checked_name("APIFY_RQ_NAME", name), is_default=False)
    return None


def _queue_of_run(source: Source) -> _Queue | None:
    variable = source.variable(_DEFAULT_QUEUE_VARIABLES)
    if variable is None:
        return None
    if backend(source, "APIFY_RQ_BACKEND") == "sqlite":
        return _Queue(None, _checked_name(*variable), is_default=True)
    if variable[1] == LOCAL_DEFAULT_STORAGE:
        # A local run with a token: the API would answer 404.
        return None
    return _Queue(_checked_id(*variable), None, is_default=True)


def _checked_id(origin: str, value: str) -> str:
    username, tilde, name = value.partition("~")
    own = tilde and _USERNAME.fullmatch(username) and is_name(name)
    if not own and not is_id(value):
        raise wrong(origin, value, _ID_CURE)
    return value


def _checked_name(origin: str, value: str) -> str:
    if not is_name(value):
        raise wrong(origin, value, _NAME_CURE)
    return value


def storage_dir(source: Source, name: str) -> Path:
    origin, raw = name, source.settings.get(name)
    if raw is None or raw == "":
        default = (name, source.defaults[name])
        origin, raw = source.variable(STORAGE_DIR_VARIABLES) or default
    return storage_folder(origin, raw)


def storage_folder(origin: str, raw: Any) -> Path:
    try:
        return Path(raw).expanduser().absolute()
    except (TypeError, RuntimeError):
        # RuntimeError: the home of a "~user" that does not exist.
        raise wrong(origin, raw, "write the path of a folder, such as './storage'") from None


def client_key(source: Source, name: str) -> str | None:
    raw = source.settings.get(name)
    if raw is None:
        # The same after a migration or a resurrection, so that the run finds its leases again.
        run = source.variable(RUN_ID_VARIABLES)
        return run[1][:CLIENT_KEY_LENGTH] if run else None
    # Neither a query nor SQLite takes lone surrogates, which odd bytes of a command line become.
    if not isinstance(raw, str) or not (raw.isprintable() and 1 <= len(raw) <= CLIENT_KEY_LENGTH):
        raise wrong(name, raw, f"write a text of 1 to {CLIENT_KEY_LENGTH} characters, or None")
    return raw


# Callbacks and classes


def callbacks(source: Source, name: str) -> Mapping[str, str]:
    cure = "write a dict of labels and names of spider methods, such as {'DETAIL': 'parse_detail'}"
    raw = source.settings.get(name)
    # dict() makes {'a': 'b'} of the list ["ab"], so getdict would accept it.
    if isinstance(raw, str) and not raw.lstrip().startswith("{"):
        raise wrong(name, raw, cure)
    methods = source.convert(name, (Mapping, str), source.settings.getdict, cure)
    for label, method in methods.items():
        if not (isinstance(label, str) and isinstance(method, str) and method.isidentifier()):
            raise wrong(name, raw, cure)
    return MappingProxyType(methods)


def schemes(source: Source, name: str) -> tuple[str, ...]:
    cure = "write a list of URL schemes, such as ['http', 'https', 's3']"
    names = [value.lower() for value in _names(source, name, cure)]
    if not names or not all(map(_SCHEME.fullmatch, names)):
        raise wrong(name, source.get(name), cure)
    return tuple(names)


def _names(source: Source, name: str, cure: str) -> list[str]:
    kinds = (list, tuple, set, frozenset, str)
    values = source.convert(name, kinds, source.settings.getlist, cure)
    return [value.strip() if isinstance(value, str) else "" for value in values]


def modules(source: Source, name: str) -> tuple[str, ...]:
    cure = "write a list of module names, such as ['my_project.items']"
    names = _names(source, name, cure)
    if not all(part.isidentifier() for module in names for part in module.split(".")):
        raise wrong(name, source.get(name), cure)
    return tuple(names)


def project_packages(source: Source) -> tuple[str, ...]:
    """The packages of SPIDER_MODULES: the project's own code."""
    modules = source.settings.getlist("SPIDER_MODULES")
    return tuple(dict.fromkeys(str(module).partition(".")[0] for module in modules))


def plugin_packages(source: Source) -> tuple[str, ...]:
    """The packages of the components that the project's settings name, without Scrapy's own."""
    settings = source.settings
    names: set[str] = set()
    for setting in _COMPONENTS:
        components = settings.getdict(setting)
        for component in (*components, *components.values()):
            path = component if isinstance(component, str) else getattr(component, "__module__", "")
            if "." in path or path in sys.modules:
                names.add(path.partition(".")[0])
    names.update(*(_COMPANIONS.get(name, ()) for name in names.copy()))
    return tuple(sorted(names - {"scrapy", "scrapy_apify_rq", "builtins"}))


# What only the environment of an Actor run has


def events_url(source: Source) -> str | None:
    variable = source.variable(_EVENTS_VARIABLES)
    return variable[1] if variable else None


def timeout_at(source: Source) -> datetime | None:
    variable = source.variable(_TIMEOUT_VARIABLES)
    if variable is None:
        return None
    try:
        time = datetime.fromisoformat(variable[1])
    except ValueError:
        cure = "write a time such as 2030-01-31T12:00:00.000Z, or unset the variable"
        raise wrong(*variable, cure) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
