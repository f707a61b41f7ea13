"""Settings: bare ``Settings``, an explicit environment, no crawler."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import BaseSettings, Settings

from scrapy_apify_rq.addon import Addon
from scrapy_apify_rq.config import DEFAULTS, Config
from scrapy_apify_rq.errors import ConfigError

TOKEN = "apify_api_SECRETsecret"
ID = "WkzbQMuFYuamGv3YF"
QUEUE_ID_VARIABLES = ["ACTOR_DEFAULT_REQUEST_QUEUE_ID", "APIFY_DEFAULT_REQUEST_QUEUE_ID"]


def read(
    settings: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    spider: str = "quotes",
) -> Config:
    return Config.from_settings(
        Settings({"BOT_NAME": "shop", **(settings or {})}), environ or {}, spider
    )


def refusal(
    settings: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        read(settings, environ)
    # An original error would repeat the value in the traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# Defaults


def test_defaults() -> None:
    config = read()
    assert dataclasses.asdict(dataclasses.replace(config, callbacks=dict(config.callbacks))) == {
        "enabled": True,
        "backend": "sqlite",
        "token": None,
        "api_base_url": "https://api.apify.com",
        "queue_id": None,
        "queue_name": "shop-quotes",
        "queue_is_default": True,
        "storage_dir": Path.cwd() / "storage",
        "access": "single",
        "client_key": None,
        "lock_secs": 180,
        "order": "fifo",
        "retry_forefront": True,
        "retry_spider_errors": 0,
        "unique_key": "fingerprint",
        "callbacks": {},
        "trusted_modules": (),
        "purge_on_start": False,
        "window": 1000,
        "outbox": 2000,
        "memory": 64 * 2**20,
        "idle_before_close": 0.0,
        "progress": False,
        "unavailable_timeout": 600.0,
        "gc_freeze": False,
        "events_url": None,
        "timeout_at": None,
    }


def test_the_defaults_are_themselves_valid_and_none_is_the_default() -> None:
    written_out = {name: value for name, value in DEFAULTS.items() if value is not None}
    assert read(written_out) == read() == read(dict.fromkeys(DEFAULTS))


def test_defaults_stand_in_one_place_and_cannot_be_changed() -> None:
    assert all(
        item.default is item.default_factory is dataclasses.MISSING
        for item in dataclasses.fields(Config)
    )
    with pytest.raises(TypeError):
        DEFAULTS["APIFY_RQ_WINDOW"] = 1  # type: ignore[index]
    config = read({"APIFY_RQ_CALLBACKS": {"A": "parse"}})
    with pytest.raises(TypeError):
        config.callbacks["B"] = "parse"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 1  # type: ignore[misc]
    assert dict(read().callbacks) == {}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_every_declared_setting_is_read(name: str) -> None:
    wrong = object()
    assert name in refusal({name: wrong})


# Values, as written in Python and on the command line


@pytest.mark.parametrize(
    ("setting", "value", "field", "expected"),
    [
        ("WINDOW", 500, "window", 500),
        ("WINDOW", "500", "window", 500),
        ("WINDOW", 1, "window", 1),
        ("OUTBOX", "1", "outbox", 1),
        ("LOCK_SECS", 1, "lock_secs", 1),
        ("RETRY_SPIDER_ERRORS", "0", "retry_spider_errors", 0),
        ("RETRY_SPIDER_ERRORS", 3, "retry_spider_errors", 3),
        ("IDLE_BEFORE_CLOSE", "2.5", "idle_before_close", 2.5),
        ("IDLE_BEFORE_CLOSE", 30, "idle_before_close", 30.0),
        ("UNAVAILABLE_TIMEOUT", 0.1, "unavailable_timeout", 0.1),
        ("ENABLED", "0", "enabled", False),
        ("ENABLED", "False", "enabled", False),
        ("RETRY_FOREFRONT", False, "retry_forefront", False),
        ("PURGE_ON_START", "1", "purge_on_start", True),
        ("PURGE_ON_START", "True", "purge_on_start", True),
        ("PROGRESS", 1, "progress", True),
        ("ORDER", "lifo", "order", "lifo"),
        ("UNIQUE_KEY", "crawlee", "unique_key", "crawlee"),
        ("BACKEND", "auto", "backend", "sqlite"),
        ("CLIENT_KEY", "k", "client_key", "k"),
        ("CLIENT_KEY", "k" * 32, "client_key", "k" * 32),
        ("CALLBACKS", {"A": "parse_a"}, "callbacks", {"A": "parse_a"}),
        ("CALLBACKS", '{"a": "b"}', "callbacks", {"a": "b"}),
        ("CALLBACKS", BaseSettings({"A": "parse_a"}), "callbacks", {"A": "parse_a"}),
        ("TRUSTED_MODULES", ["shop.items"], "trusted_modules", ("shop.items",)),
        ("TRUSTED_MODULES", ("shop", "more"), "trusted_modules", ("shop", "more")),
        ("TRUSTED_MODULES", "shop.items, more", "trusted_modules", ("shop.items", "more")),
        ("TRUSTED_MODULES", "", "trusted_modules", ()),
    ],
)
def test_value(setting: str, value: object, field: str, expected: object) -> None:
    assert getattr(read({f"APIFY_RQ_{setting}": value}), field) == expected


@pytest.mark.parametrize(
    ("setting", "value", "cure"),
    [
        ("ENABLED", "yes", "write True or False"),
        ("ENABLED", [], "write True or False"),
        ("RETRY_FOREFRONT", "front", "write True or False"),
        ("PURGE_ON_START", "", "write True or False"),
        ("PROGRESS", "on", "write True or False"),
        ("WINDOW", 0, "whole number of at least 1, for example 1000"),
        ("WINDOW", -5, "whole number of at least 1"),
        ("WINDOW", "many", "whole number of at least 1"),
        ("WINDOW", "", "whole number of at least 1"),
        ("WINDOW", 2.7, "whole number of at least 1"),
        ("WINDOW", "2.7", "whole number of at least 1"),
        ("WINDOW", True, "whole number of at least 1"),
        ("WINDOW", "True", "whole number of at least 1"),
        ("OUTBOX", 0, "whole number of at least 1"),
        ("OUTBOX", [10], "whole number of at least 1"),
        ("LOCK_SECS", "0", "whole number of at least 1, for example 180"),
        ("RETRY_SPIDER_ERRORS", -1, "whole number of at least 0, for example 0"),
        ("RETRY_SPIDER_ERRORS", False, "whole number of at least 0"),
        ("IDLE_BEFORE_CLOSE", -0.1, "number of seconds of at least 0"),
        ("IDLE_BEFORE_CLOSE", "nan", "number of seconds of at least 0"),
        ("IDLE_BEFORE_CLOSE", "never", "number of seconds of at least 0"),
        ("IDLE_BEFORE_CLOSE", True, "number of seconds of at least 0"),
        ("UNAVAILABLE_TIMEOUT", 0, "number of seconds above 0, for example 600"),
        ("UNAVAILABLE_TIMEOUT", float("inf"), "number of seconds above 0"),
        ("BACKEND", "sqlit", "'auto', 'apify', 'sqlite' (did you mean 'sqlite'?)"),
        ("BACKEND", "Apify", "(did you mean 'apify'?)"),
        ("ACCESS", "share", "'single', 'shared' (did you mean 'shared'?)"),
        ("ORDER", "life", "'fifo', 'lifo' (did you mean 'lifo'?)"),
        ("ORDER", 1, "'fifo', 'lifo'"),
        ("UNIQUE_KEY", "crawly", "'fingerprint', 'crawlee' (did you mean 'crawlee'?)"),
        ("CLIENT_KEY", "", "1 to 32 characters"),
        ("CLIENT_KEY", "k" * 33, "1 to 32 characters"),
        ("CLIENT_KEY", 7, "1 to 32 characters"),
        ("CALLBACKS", "A=parse", "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", "{A: parse}", "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", '["ab"]', "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", ["ab"], "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", {"A": 1}, "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", {1: "parse"}, "such as {'DETAIL': 'parse_detail'}"),
        ("CALLBACKS", {"A": "self.parse"}, "such as {'DETAIL': 'parse_detail'}"),
        ("TRUSTED_MODULES", [1], "such as ['my_project.items']"),
        ("TRUSTED_MODULES", 1, "such as ['my_project.items']"),
        ("TRUSTED_MODULES", {"shop": 1}, "such as ['my_project.items']"),
        ("TRUSTED_MODULES", b"shop", "such as ['my_project.items']"),
        ("TRUSTED_MODULES", "shop.*", "such as ['my_project.items']"),
        ("TRUSTED_MODULES", '["shop"]', "such as ['my_project.items']"),
        ("STORAGE_DIR", 5, "the path of a folder, such as './storage'"),
        ("STORAGE_DIR", "~no-such-user-here/x", "the path of a folder"),
        ("ID", "short", "17 letters and digits"),
        ("ID", ID + "x", "17 letters and digits"),
        ("ID", "me/queue", "'username~name', or '~name'"),
        ("ID", "me~", "'username~name', or '~name'"),
        ("ID", "me~a~b", "'username~name', or '~name'"),
        ("ID", "me~-a", "'username~name', or '~name'"),
        ("ID", 17, "a plain name goes into APIFY_RQ_NAME"),
        ("NAME", "a_b", "1 to 63 letters, digits and hyphens"),
        ("NAME", "-a", "no hyphen at either end"),
        ("NAME", "a-", "no hyphen at either end"),
        ("NAME", "me~a", "1 to 63 letters"),
        ("NAME", "a" * 64, "1 to 63 letters"),
        ("NAME", "a\nb", "1 to 63 letters"),
        ("NAME", 5, "1 to 63 letters"),
    ],
)
def test_wrong_value_names_the_setting_the_value_and_the_cure(
    setting: str, value: object, cure: str
) -> None:
    message = refusal({f"APIFY_RQ_{setting}": value})
    assert f"APIFY_RQ_{setting} = {value!r}: " in message
    assert cure in message


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal({"APIFY_RQ_WINDOW": "x" * 10_000})) < 250


# Names of settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("APIFY_RQ_WINDWO", "APIFY_RQ_WINDOW"),
        ("APIFY_RQ_QUEUE_NAME", "APIFY_RQ_NAME"),
        ("APIFY_RQ_STORAGE", "APIFY_RQ_STORAGE_DIR"),
        ("APIFY_RQ_TOKEN", "APIFY_TOKEN"),
        ("APIFY_RQ_BASE_URL", "APIFY_API_BASE_URL"),
        ("apify_rq_window", "APIFY_RQ_WINDOW"),
        ("Apify_RQ_Name", "APIFY_RQ_NAME"),
    ],
)
@pytest.mark.parametrize("value", [None, TOKEN])
def test_unknown_name(name: str, meant: str, value: object) -> None:
    assert refusal({name: value}) == f"Unknown setting {name}: did you mean {meant}?"


def test_several_unknown_names_are_all_named() -> None:
    message = refusal({"APIFY_RQ_WINDWO": 1, "APIFY_RQ_OUTBOKS": 2})
    assert "APIFY_RQ_WINDWO: did you mean APIFY_RQ_WINDOW?" in message
    assert "APIFY_RQ_OUTBOKS: did you mean APIFY_RQ_OUTBOX?" in message


def test_unknown_name_like_no_other_lists_them_all() -> None:
    message = refusal({"APIFY_RQ_ZZZ": 1})
    assert all(name in message for name in DEFAULTS)


def test_settings_of_others_are_left_alone() -> None:
    assert read({"APIFY_PROXY_SETTINGS": {}, "APIFY_HTTPCACHE_EXPIRATION_MAX_ITEMS": 1}) == read()


# The token


@pytest.mark.parametrize(
    ("setting", "variable", "expected"),
    [
        (None, None, None),
        ("", "", None),
        (" ", "\n", None),
        (TOKEN, None, TOKEN),
        (None, TOKEN, TOKEN),
        ("", TOKEN, TOKEN),
        (" ", TOKEN, TOKEN),
        (TOKEN, "other", TOKEN),
        (f" {TOKEN}\n", None, TOKEN),
    ],
)
def test_token(setting: str | None, variable: str | None, expected: str | None) -> None:
    environ = {} if variable is None else {"APIFY_TOKEN": variable}
    assert read({"APIFY_TOKEN": setting}, environ).token == expected


@pytest.mark.parametrize("value", [f"{TOKEN} {TOKEN}", f"{TOKEN}é", f"a\n{TOKEN}", [TOKEN], 12345])
def test_wrong_token_is_not_shown(value: object) -> None:
    message = refusal({"APIFY_TOKEN": value})
    assert "APIFY_TOKEN" in message
    assert "copy it anew" in message
    assert "SECRET" not in message
    assert "12345" not in message


def test_token_is_not_in_the_repr() -> None:
    config = read({"APIFY_TOKEN": TOKEN})
    assert config.token == TOKEN
    assert "SECRET" not in repr(config)
    assert "SECRET" not in str(config)


@pytest.mark.parametrize("value", [f"{TOKEN} *{'x' * 40}", [TOKEN, 1], {TOKEN: 1}])
# A folder may have any name.
@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - {"APIFY_TOKEN", "APIFY_RQ_STORAGE_DIR"}))
def test_token_pasted_into_a_wrong_place_is_not_shown(name: str, value: object) -> None:
    message = refusal({name: value})
    assert f"{name} = " in message
    assert "SECRET" not in message


# The backend


@pytest.mark.parametrize(
    ("backend", "token", "expected"),
    [
        (None, None, "sqlite"),
        (None, TOKEN, "apify"),
        ("auto", None, "sqlite"),
        ("auto", TOKEN, "apify"),
        ("apify", TOKEN, "apify"),
        ("sqlite", None, "sqlite"),
        ("sqlite", TOKEN, "sqlite"),
    ],
)
def test_backend(backend: str | None, token: str | None, expected: str) -> None:
    assert read({"APIFY_RQ_BACKEND": backend, "APIFY_TOKEN": token}).backend == expected


def test_backend_apify_needs_a_token() -> None:
    message = refusal({"APIFY_RQ_BACKEND": "apify"})
    assert "APIFY_TOKEN" in message
    assert "APIFY_RQ_BACKEND = 'sqlite'" in message


def test_without_a_token_the_missing_token_is_what_is_said() -> None:
    assert "set APIFY_TOKEN" in refusal({"APIFY_RQ_BACKEND": "apify"})


def test_the_add_on_names_the_setting_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match="APIFY_RQ_ENABLED = 'yes': write True or False"):
        Addon().update_settings(Settings({"APIFY_RQ_ENABLED": "yes"}))


# What does not go together


def test_no_worker_of_many_may_empty_the_queue() -> None:
    message = refusal({"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_PURGE_ON_START": True})
    assert "each worker that starts would delete what the others crawl" in message
    assert "'scrapy rq purge'" in message


def test_shared_access() -> None:
    assert read({"APIFY_RQ_ACCESS": "shared"}).access == "shared"


@pytest.mark.parametrize(
    "settings",
    [
        {"APIFY_TOKEN": TOKEN},
        {"APIFY_RQ_BACKEND": "apify"},
        {"APIFY_RQ_ACCESS": "shared"},
    ],
)
def test_what_is_switched_off_is_not_refused(settings: dict[str, object]) -> None:
    assert not read({"APIFY_RQ_ENABLED": False, **settings}).enabled


def test_what_is_switched_off_is_still_checked() -> None:
    assert "APIFY_RQ_WINDOW" in refusal({"APIFY_RQ_ENABLED": False, "APIFY_RQ_WINDOW": 0})


# Which queue


def queue(config: Config) -> tuple[str | None, str | None, bool]:
    return config.queue_id, config.queue_name, config.queue_is_default


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("environ", [{}, {QUEUE_ID_VARIABLES[0]: "x" * 17}])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"APIFY_RQ_ID": ID}, (ID, None, False)),
        ({"APIFY_RQ_ID": f" {ID}\n"}, (ID, None, False)),
        ({"APIFY_RQ_ID": "some.one_else-x~my-queue"}, ("some.one_else-x~my-queue", None, False)),
        ({"APIFY_RQ_ID": "~my-queue"}, ("~my-queue", None, False)),
        ({"APIFY_RQ_ID": ID, "APIFY_RQ_NAME": ""}, (ID, None, False)),
        ({"APIFY_RQ_NAME": "My-Queue"}, (None, "My-Queue", False)),
        ({"APIFY_RQ_NAME": "a"}, (None, "a", False)),
        ({"APIFY_RQ_NAME": "a" * 63, "APIFY_RQ_ID": None}, (None, "a" * 63, False)),
    ],
)
def test_named_queue(
    settings: dict[str, object],
    expected: tuple[str | None, str | None, bool],
    environ: dict[str, str],
    token: str | None,
) -> None:
    assert queue(read({**settings, "APIFY_TOKEN": token}, environ)) == expected


def test_id_and_name_contradict_each_other() -> None:
    message = refusal({"APIFY_RQ_ID": ID, "APIFY_RQ_NAME": "mine"})
    assert f"APIFY_RQ_ID = '{ID}' and APIFY_RQ_NAME = 'mine'" in message
    assert "remove one" in message


FIRST, SECOND = QUEUE_ID_VARIABLES
DERIVED = (None, "shop-quotes", True)


@pytest.mark.parametrize(
    ("environ", "at_apify", "in_sqlite"),
    [
        ({FIRST: ID}, (ID, None, True), (None, ID, True)),
        ({SECOND: ID}, (ID, None, True), (None, ID, True)),
        ({FIRST: ID, SECOND: "y" * 17}, (ID, None, True), (None, ID, True)),
        ({FIRST: "", SECOND: ID}, (ID, None, True), (None, ID, True)),
        ({FIRST: "", SECOND: " "}, DERIVED, DERIVED),
        ({FIRST: "default"}, DERIVED, (None, "default", True)),
        ({SECOND: "default"}, DERIVED, (None, "default", True)),
    ],
)
def test_default_queue_of_the_run(
    environ: dict[str, str],
    at_apify: tuple[str | None, str | None, bool],
    in_sqlite: tuple[str | None, str | None, bool],
) -> None:
    assert queue(read({"APIFY_TOKEN": TOKEN}, environ)) == at_apify
    assert queue(read(None, environ)) == in_sqlite


@pytest.mark.parametrize("variable", QUEUE_ID_VARIABLES)
@pytest.mark.parametrize(
    ("token", "cure"), [(TOKEN, "17 letters and digits"), (None, "1 to 63 letters")]
)
def test_wrong_default_queue_of_the_run(variable: str, token: str | None, cure: str) -> None:
    message = refusal({"APIFY_TOKEN": token}, {variable: "a/../b"})
    assert f"{variable} (environment variable) = 'a/../b': " in message
    assert cure in message


@pytest.mark.parametrize(
    ("bot", "spider", "expected"),
    [
        ("shop", "quotes", r"shop-quotes"),
        ("Shop", "a-b", r"Shop-a-b"),
        ("s", "x" * 61, r"s-x{61}"),
        ("s", "x" * 62, r"s-x{52}-[0-9a-f]{8}"),
        ("shop", "a.b", r"shop-a-b-[0-9a-f]{8}"),
        ("shop", "a_b", r"shop-a-b-[0-9a-f]{8}"),
        ("shop", "été", r"shop--t-[0-9a-f]{8}"),
        ("", "quotes", r"quotes-[0-9a-f]{8}"),
        ("例", "例", r"[0-9a-f]{8}"),
        ("shop", "a" * 47 + "." + "b" * 30, r"shop-a{47}-b?-?[0-9a-f]{8}"),
    ],
)
def test_derived_name(bot: str, spider: str, expected: str) -> None:
    config = read({"BOT_NAME": bot}, spider=spider)
    assert config.queue_name is not None
    assert re.fullmatch(expected, config.queue_name)
    # The platform's rule, stated once more.
    assert re.fullmatch(r"([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])", config.queue_name)
    assert len(config.queue_name) <= 63
    assert config.queue_is_default
    assert config.queue_id is None


def test_derived_names_differ_and_are_stable() -> None:
    spiders = ["a.b", "a_b", "a-b", "a b", "x" * 80, "x" * 81]
    names = [read(spider=spider).queue_name for spider in spiders]
    assert len(set(names)) == len(spiders)
    # Written out, because a name that changed between versions would lose a paused crawl.
    assert names[0] == "shop-a-b-afbb04ed"


# Where the embedded queue lies


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, Path.cwd() / "storage"),
        ("", {"CRAWLEE_STORAGE_DIR": ""}, Path.cwd() / "storage"),
        (None, {"APIFY_LOCAL_STORAGE_DIR": "/l"}, Path("/l")),
        (None, {"CRAWLEE_STORAGE_DIR": "/c", "APIFY_LOCAL_STORAGE_DIR": "/l"}, Path("/c")),
        (None, {"CRAWLEE_STORAGE_DIR": "", "APIFY_LOCAL_STORAGE_DIR": "/l"}, Path("/l")),
        ("/s", {"CRAWLEE_STORAGE_DIR": "/c"}, Path("/s")),
        (Path("/s"), {"CRAWLEE_STORAGE_DIR": "/c"}, Path("/s")),
        ("here", {}, Path.cwd() / "here"),
        ("~/there", {}, Path.home() / "there"),
        (None, {"CRAWLEE_STORAGE_DIR": "~/there"}, Path.home() / "there"),
    ],
)
def test_storage_dir(setting: object, environ: dict[str, str], expected: Path) -> None:
    config = read({"APIFY_RQ_STORAGE_DIR": setting}, environ)
    assert config.storage_dir == expected
    assert config.storage_dir.is_absolute()


def test_wrong_storage_dir_names_the_variable() -> None:
    message = refusal(None, {"CRAWLEE_STORAGE_DIR": "~no-such-user-here/x"})
    assert "CRAWLEE_STORAGE_DIR (environment variable) = '~no-such-user-here/x'" in message
    assert "./storage" in message


# The address of the API


@pytest.mark.parametrize("source", ["setting", "variable"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "https://api.apify.com"),
        ("https://api.apify.com", "https://api.apify.com"),
        ("https://api.apify.com/", "https://api.apify.com"),
        ("https://api.apify.com/v2", "https://api.apify.com"),
        ("https://api.apify.com/v2/", "https://api.apify.com"),
        (" https://api.apify.com\n", "https://api.apify.com"),
        ("HTTPS://proxy.example/apify/v2/", "https://proxy.example/apify"),
        ("https://v2", "https://v2"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.9.9.9/", "http://127.9.9.9"),
        ("http://localhost:8080/v2", "http://localhost:8080"),
        ("http://LocalHost", "http://LocalHost"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_api_base_url(source: str, url: str, expected: str) -> None:
    given = {"APIFY_API_BASE_URL": url}
    config = read(given) if source == "setting" else read(None, given)
    assert config.api_base_url == expected


def test_api_base_url_of_the_settings_goes_first() -> None:
    config = read(
        {"APIFY_API_BASE_URL": "https://set.example"},
        {"APIFY_API_BASE_URL": "https://env.example"},
    )
    assert config.api_base_url == "https://set.example"


UNENCRYPTED = [
    "http://api.apify.com",
    "http://10.0.0.1:8080",
    "http://128.0.0.1",
    "http://0.0.0.0",
    "http://[::2]",
    "http://localhost.example",
    "http://127.0.0.1.example",
    "http://host.docker.internal:8080",
]


@pytest.mark.parametrize("url", UNENCRYPTED)
@pytest.mark.parametrize("at_home", [{}, {"APIFY_IS_AT_HOME": "1"}])
def test_plain_http_setting_is_refused_everywhere(url: str, at_home: dict[str, str]) -> None:
    message = refusal({"APIFY_API_BASE_URL": url}, at_home)
    assert f"APIFY_API_BASE_URL = '{url}'" in message
    assert "the token would travel unencrypted" in message
    assert "https://" in message


@pytest.mark.parametrize("at_home", [{}, {"APIFY_IS_AT_HOME": ""}, {"APIFY_IS_AT_HOME": "0"}])
def test_plain_http_variable_is_refused_outside_the_platform(at_home: dict[str, str]) -> None:
    message = refusal(None, {"APIFY_API_BASE_URL": "http://10.0.0.1", **at_home})
    assert "APIFY_API_BASE_URL (environment variable) = 'http://10.0.0.1'" in message
    assert "unencrypted" in message


def test_plain_http_variable_is_allowed_inside_the_platform() -> None:
    environ = {"APIFY_API_BASE_URL": "http://10.0.88.1:8010/", "APIFY_IS_AT_HOME": "1"}
    assert read(None, environ).api_base_url == "http://10.0.88.1:8010"


@pytest.mark.parametrize(
    "url",
    [
        "api.apify.com",
        "localhost:8080",
        "ftp://api.apify.com",
        "https://",
        "https:///v2",
        "https://[::1",
        "https://api.apify.com:port",
        "https://api.apify.com:99999",
        "https://api .apify.com",
        "https://api.apify.com\\x",
        "https://api.apify.com?a=b",
        "https://api.apify.com#a",
        "https://user:SECRET@api.apify.com",
        "https://user:SEC/SECRET@api.apify.com",
        "http://127.0.0.1?token=SECRET",
        "http://10.0.0.1/apify_api_SECRET",
        5,
    ],
)
def test_wrong_api_base_url(url: object) -> None:
    message = refusal({"APIFY_API_BASE_URL": url})
    assert message.startswith("APIFY_API_BASE_URL = ")
    assert "https://" in message
    assert "SECRET" not in message


# An Actor run

RUN_ID_VARIABLES = ["ACTOR_RUN_ID", "APIFY_ACTOR_RUN_ID", "APIFY_ACT_RUN_ID"]
EVENTS_VARIABLES = ["ACTOR_EVENTS_WEBSOCKET_URL", "APIFY_ACTOR_EVENTS_WS_URL"]
TIMEOUT_VARIABLES = ["ACTOR_TIMEOUT_AT", "APIFY_TIMEOUT_AT"]


@pytest.mark.parametrize("variable", RUN_ID_VARIABLES)
def test_the_run_id_is_the_client_key(variable: str) -> None:
    assert read(environ={variable: "HG7ML7M8z78YcAPEB"}).client_key == "HG7ML7M8z78YcAPEB"
    assert read(environ={variable: "r" * 40}).client_key == "r" * 32
    assert read({"APIFY_RQ_CLIENT_KEY": "mine"}, {variable: "run"}).client_key == "mine"
    assert read(environ={variable: " "}).client_key is None


@pytest.mark.parametrize("variable", EVENTS_VARIABLES)
def test_the_address_of_the_events(variable: str) -> None:
    assert read(environ={variable: "wss://host/x"}).events_url == "wss://host/x"
    assert read(environ={variable: ""}).events_url is None
    assert "secret" not in repr(read(environ={variable: "wss://host/?key=secret"}))


@pytest.mark.parametrize("variable", TIMEOUT_VARIABLES)
def test_the_end_of_the_run(variable: str) -> None:
    expected = datetime(2030, 1, 31, 12, tzinfo=UTC)
    for text in ("2030-01-31T12:00:00.000Z", "2030-01-31T13:00:00+01:00", "2030-01-31T12:00:00"):
        assert read(environ={variable: text}).timeout_at == expected
    assert read(environ={variable: ""}).timeout_at is None
    with pytest.raises(ConfigError, match=rf"{variable} .* = 'soon': write a time such as"):
        read(environ={variable: "soon"})


@pytest.mark.parametrize("names", [RUN_ID_VARIABLES, EVENTS_VARIABLES, TIMEOUT_VARIABLES])
def test_the_newer_name_of_a_variable_goes_first(names: list[str]) -> None:
    values = ["2030-01-01T00:00:00Z", "2031-01-01T00:00:00Z", "2032-01-01T00:00:00Z"]
    both = dict(zip(names, values, strict=False))
    assert read(environ=both) == read(environ=dict([next(iter(both.items()))]))
