"""Settings and their readers, in an explicit environment, without a crawler."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import BaseSettings, Settings

from scrapy_apify_rq.addon import Addon
from scrapy_apify_rq.config import _DECLARED, DEFAULTS, Config, Setting
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.identity import NO_ARGUMENTS, Arguments, default_name
from scrapy_apify_rq.run_environment import RunEnvironment

# It says SECRET in the part that must not be shown.
TOKEN = "apify_api_SECRETsecret"
AT_APIFY = {"APIFY_TOKEN": TOKEN}
ID = "WkzbQMuFYuamGv3YF"
# The variables of an Actor run, the newer name first.
QUEUE_ID = ["ACTOR_DEFAULT_REQUEST_QUEUE_ID", "APIFY_DEFAULT_REQUEST_QUEUE_ID"]
RUN_ID = ["ACTOR_RUN_ID", "APIFY_ACTOR_RUN_ID", "APIFY_ACT_RUN_ID"]
EVENTS = ["ACTOR_EVENTS_WEBSOCKET_URL", "APIFY_ACTOR_EVENTS_WS_URL"]
INPUT_KEY = ["ACTOR_INPUT_KEY", "APIFY_INPUT_KEY", "CRAWLEE_INPUT_KEY"]
TIMEOUT = ["ACTOR_TIMEOUT_AT", "APIFY_TIMEOUT_AT"]
# What is read of a run where there is none.
NO_RUN: dict[str, Any] = {
    "id": None,
    "input_key": "INPUT",
    "key_value_store_id": None,
    "local_folder": None,
    "purge": None,
    "max_charge": None,
    "proxy_password": None,
    "secrets_key": None,
    "secrets_passphrase": None,
    "proxy_address": "http://proxy.apify.com:8000",
}
Values = Mapping[str, Any]


def read(
    settings: Values | None = None,
    environ: Values | None = None,
    spider: str | None = "quotes",
    arguments: Arguments | None = NO_ARGUMENTS,
) -> Config:
    values = Settings({"BOT_NAME": "shop", **(settings or {})})
    return Config.from_settings(values, environ or {}, spider, arguments)


def refusal(settings: Values | None = None, environ: Values | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(settings, environ)
    # An original error would repeat the value in the traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# Defaults and names


def test_defaults() -> None:
    """They are as declared, which is what the table in docs/settings.md shows, except for these."""
    resolved = {"backend": "sqlite", "memory": 64 * 2**20, "trusted_modules": ()}
    resolved |= {"schemes": ("http", "https"), "project_packages": (), "plugin_packages": ()}
    resolved |= {"queue_name": "shop-quotes", "queue_is_default": True}
    resolved |= {"spider_name": "quotes", "queue_is_of_spider": True, "arguments": NO_ARGUMENTS}
    resolved |= {"storage_dir": Path.cwd() / "storage", "events_url": None, "timeout_at": None}
    resolved |= {"run": dataclasses.asdict(RunEnvironment(**NO_RUN))}
    declared = {name: getattr(item, "default", None) for name, item in _DECLARED.items()}
    config = read()
    plain = dataclasses.replace(config, callbacks=dict(config.callbacks))
    assert dataclasses.asdict(plain) == {**declared, **resolved}
    written_out = {name: value for name, value in DEFAULTS.items() if value is not None}
    assert config == read(written_out) == read(dict.fromkeys(DEFAULTS))
    names = [item.name for item in _DECLARED.values() if isinstance(item, Setting)]
    assert names == list(DEFAULTS)
    fields = dataclasses.fields(Config)
    assert all(item.default is item.default_factory is dataclasses.MISSING for item in fields)


def test_nothing_can_be_changed() -> None:
    config = read({"APIFY_RQ_CALLBACKS": {"A": "parse"}})
    with pytest.raises(TypeError):
        DEFAULTS["APIFY_RQ_WINDOW"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        config.callbacks["B"] = "parse"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 1  # type: ignore[misc]
    assert dict(read().callbacks) == {}


MEANT = {
    "APIFY_RQ_WINDWO": "APIFY_RQ_WINDOW",
    "APIFY_RQ_QUEUE_NAME": "APIFY_RQ_NAME",
    "APIFY_RQ_STORAGE": "APIFY_RQ_STORAGE_DIR",
    "APIFY_RQ_TOKEN": "APIFY_TOKEN",
    "APIFY_RQ_BASE_URL": "APIFY_API_BASE_URL",
    "apify_rq_window": "APIFY_RQ_WINDOW",
    "Apify_RQ_Name": "APIFY_RQ_NAME",
}


def test_unknown_names() -> None:
    expected = {name: f"Unknown setting {name}: did you mean {MEANT[name]}?" for name in MEANT}
    for value in (None, TOKEN):
        assert {name: refusal({name: value}) for name in MEANT} == expected
    both = refusal({"APIFY_RQ_WINDWO": 1, "APIFY_RQ_STORAGE": 2})
    assert both == f"{expected['APIFY_RQ_STORAGE']} {expected['APIFY_RQ_WINDWO']}"
    assert "scrapy rq status --watch" in refusal({"APIFY_RQ_PROGRESS": True})  # it was one
    like_no_other = refusal({"APIFY_RQ_ZZZ": 1})
    assert all(name in like_no_other for name in DEFAULTS)


def test_settings_of_others_are_left_alone() -> None:
    assert read({"APIFY_PROXY_SETTINGS": {}, "APIFY_HTTPCACHE_EXPIRATION_MAX_ITEMS": 1}) == read()


def test_add_on_names_the_setting_that_is_wrong() -> None:
    with pytest.raises(ConfigError, match="APIFY_RQ_ENABLED = 'yes': write True or False"):
        Addon().update_settings(Settings({"APIFY_RQ_ENABLED": "yes"}))


# Values, as written in Python and on the command line


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ENABLED", [("0", False), ("False", False)]),
        ("ACCESS", [("shared", "shared")]),
        ("CLIENT_KEY", [("k", "k"), ("k" * 32, "k" * 32)]),
        ("LOCK_SECS", [(1, 1)]),
        ("ORDER", [("lifo", "lifo")]),
        ("RETRY_FOREFRONT", [(False, False)]),
        ("RETRY_DELAY", [("0", 0), (0.5, 0.5)]),
        ("RETRY_SPIDER_ERRORS", [("0", 0), (3, 3)]),
        ("UNIQUE_KEY", [("url", "url"), ("url-js", "url-js"), ("extended", "extended")]),
        ("CALLBACKS", [({"A": "parse_a"}, {"A": "parse_a"}), ('{"a": "b"}', {"a": "b"})]),
        ("CALLBACKS", [(BaseSettings({"A": "parse_a"}), {"A": "parse_a"})]),
        ("TRUSTED_MODULES", [(["shop.items"], ("shop.items",)), (("a", "b.c"), ("a", "b.c"))]),
        ("TRUSTED_MODULES", [("shop.items, more", ("shop.items", "more")), ("", ())]),
        ("ITEMS", [("auto", "auto"), ("True", True), (False, False)]),
        ("PURGE_ON_START", [("1", True), ("True", True)]),
        ("WINDOW", [(500, 500), ("500", 500), (1, 1)]),
        ("OUTBOX", [("1", 1)]),
        ("MEMORY_MB", [(1, 2**20), ("64", 64 * 2**20), (None, 64 * 2**20), (2048, 2**31)]),
        ("IDLE_BEFORE_CLOSE", [("2.5", 2.5), (30, 30.0)]),
        ("UNAVAILABLE_TIMEOUT", [(0.1, 0.1)]),
        ("GC_FREEZE", [(None, False), (1, True), ("1", True)]),
    ],
)
def test_right_values(name: str, values: list[tuple[object, object]]) -> None:
    field = name.lower().removesuffix("_mb")
    found = [(given, getattr(read({f"APIFY_RQ_{name}": given}), field)) for given, _ in values]
    assert found == values


BOOLEAN = "write True or False"
CALLBACKS = "such as {'DETAIL': 'parse_detail'}"
MODULES = "such as ['my_project.items']"
FOLDER = "write the path of a folder, such as './storage'"
WHICH_ID = (
    "(17 letters and digits), 'username~name', or '~name' for a queue of your own; a plain name"
)
WHICH_NAME = "a queue name has 1 to 63 letters, digits and hyphens, with no hyphen at either end"
WHOLE = "write a whole number of at least {}, for example {}"
SECONDS = "write a number of seconds {}, for example {}"


@pytest.mark.parametrize(
    ("name", "cure", "values"),
    [
        ("ENABLED", BOOLEAN, ["yes", []]),
        ("RETRY_FOREFRONT", BOOLEAN, ["front"]),
        ("ITEMS", "write 'auto', True or False", ["", "some", 2.5]),
        ("PURGE_ON_START", BOOLEAN, [""]),
        ("GC_FREEZE", BOOLEAN, ["yes", "on"]),
        ("WINDOW", WHOLE.format(1, 1000), [0, -5, "many", "", 2.7, "2.7", True, "True"]),
        ("OUTBOX", WHOLE.format(1, 2000), [0, [10]]),
        ("LOCK_SECS", WHOLE.format(1, 180), ["0"]),
        ("MEMORY_MB", WHOLE.format(1, 64), [0, -1, 0.5, "1.5", "64 MB", True, math.inf]),
        ("RETRY_DELAY", SECONDS.format("of at least 0", 1), [-1, "inf", "soon", True]),
        ("RETRY_SPIDER_ERRORS", WHOLE.format(0, 0), [-1, False]),
        ("IDLE_BEFORE_CLOSE", SECONDS.format("of at least 0", 0), [-0.1, "nan", "never", True]),
        ("UNAVAILABLE_TIMEOUT", SECONDS.format("above 0", 600), [0, math.inf]),
        ("BACKEND", "'auto', 'apify', 'sqlite' (did you mean 'sqlite'?)", ["sqlit"]),
        ("BACKEND", "(did you mean 'apify'?)", ["Apify"]),
        ("ACCESS", "'single', 'shared' (did you mean 'shared'?)", ["share"]),
        ("ORDER", "'fifo', 'lifo' (did you mean 'lifo'?)", ["life"]),
        ("ORDER", "'fifo', 'lifo'", [1]),
        ("UNIQUE_KEY", "'url', 'url-js', 'extended' (did you mean 'extended'?)", ["extend"]),
        ("UNIQUE_KEY", "it is now called 'extended'", ["crawlee"]),
        ("CLIENT_KEY", "1 to 32 characters", ["", "k" * 33, 7, "k\udcff"]),
        ("CALLBACKS", CALLBACKS, ["A=parse", "{A: parse}", '["ab"]', ["ab"], {"A": 1}]),
        ("CALLBACKS", CALLBACKS, [{1: "parse"}, {"A": "self.parse"}]),
        ("TRUSTED_MODULES", MODULES, [[1], 1, {"shop": 1}, b"shop", "shop.*", '["shop"]']),
        ("SCHEMES", "a list of URL schemes", [[], [1], "http:", ["ht tp"], {"http": 1}]),
        ("STORAGE_DIR", FOLDER, [5, "~no-such-user-here/x"]),
        ("ID", WHICH_ID, ["short", ID + "x", "me/queue", "me~", "me~a~b", "me~-a", 17]),
        ("NAME", WHICH_NAME, ["a_b", "-a", "a-", "me~a", "a" * 64, "a\nb", 5]),
    ],
)
def test_wrong_values(name: str, cure: str, values: list[object]) -> None:
    for value in values:
        message = refusal({f"APIFY_RQ_{name}": value})
        assert message.startswith(f"APIFY_RQ_{name} = {value!r}: ")
        assert cure in message


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_every_declared_setting_is_read_and_shows_no_token_that_was_pasted_into_it(
    name: str,
) -> None:
    assert name in refusal({name: object()})
    # A folder may have any name, and the others may hold a password.
    if name not in ("APIFY_TOKEN", "APIFY_RQ_STORAGE_DIR", "APIFY_RQ_PROXY"):
        for value in (f"{TOKEN} *{'x' * 40}", [TOKEN, 1], {TOKEN: 1}):
            message = refusal({name: value})
            assert f"{name} = " in message
            assert "SECRET" not in message


def test_long_value_is_cut_in_the_message() -> None:
    assert len(refusal({"APIFY_RQ_WINDOW": "x" * 10_000})) < 250


# The token, the folder and the address, of which the environment knows, too


def test_token() -> None:
    for unset in ((None, ""), ("", ""), (" ", "\n")):
        assert read(*({"APIFY_TOKEN": value} for value in unset)).token is None
    given = [(TOKEN, ""), (None, TOKEN), ("", TOKEN), (" ", TOKEN), (f" {TOKEN}\n", "other")]
    for setting, variable in given:
        config = read({"APIFY_TOKEN": setting}, {"APIFY_TOKEN": variable})
        assert config.token == TOKEN
        assert "SECRET" not in repr(config) + str(config)
    for wrong in (f"{TOKEN} {TOKEN}", f"{TOKEN}é", f"a\n{TOKEN}", [TOKEN], 12345):
        message = refusal({"APIFY_TOKEN": wrong})
        assert re.fullmatch(r"APIFY_TOKEN \(not shown here\) is .*: copy it anew .*", message)
        assert "SECRET" not in message
        assert "12345" not in message


def test_storage_dir() -> None:
    def found(setting: object = None, crawlee: str = "", apify: str = "") -> Path:
        environ = {"CRAWLEE_STORAGE_DIR": crawlee, "APIFY_LOCAL_STORAGE_DIR": apify}
        return read({"APIFY_RQ_STORAGE_DIR": setting}, environ).storage_dir

    assert found() == found("") == Path.cwd() / "storage"
    assert found(apify="/l") == Path("/l")
    assert found(crawlee="/c", apify="/l") == Path("/c")
    assert found("/s", "/c", "/l") == found(Path("/s"), "/c") == Path("/s")
    assert found("here") == Path.cwd() / "here"
    assert found("~/there") == found(crawlee="~/there") == Path.home() / "there"


APIFY = "https://api.apify.com"
AS_APIFY = ["", APIFY, f"{APIFY}/", f"{APIFY}/v2", f"{APIFY}/v2/", f" {APIFY}\n"]
ADDRESSES = {
    **dict.fromkeys(AS_APIFY, APIFY),
    "HTTPS://proxy.example/apify/v2/": "https://proxy.example/apify",
    "https://v2": "https://v2",
    "http://127.0.0.1:8080": "http://127.0.0.1:8080",
    "http://127.9.9.9/": "http://127.9.9.9",
    "http://localhost:8080/v2": "http://localhost:8080",
    "http://LocalHost": "http://LocalHost",
    "http://[::1]:8080": "http://[::1]:8080",
}
AT_HOME = {"APIFY_IS_AT_HOME": "1"}


def test_addresses() -> None:
    given = {url: {"APIFY_API_BASE_URL": url} for url in ADDRESSES}
    assert {url: read(given[url]).api_base_url for url in given} == ADDRESSES
    assert {url: read(None, given[url]).api_base_url for url in given} == ADDRESSES
    environ = {"APIFY_API_BASE_URL": "https://env.example"}
    both = {url: read(given[url], environ).api_base_url for url in given}
    assert both == {**ADDRESSES, "": "https://env.example"}


def test_unencrypted_address_is_for_the_platform_only() -> None:
    cure = "the token would travel unencrypted; write https:// or a loopback address"
    near = ["127.0.0.1.example", "localhost.example", "0.0.0.0", "[::2]", "128.0.0.1"]
    for host in (*near, "api.apify.com", "10.0.0.1:8080", "host.docker.internal:8080"):
        given = {"APIFY_API_BASE_URL": f"http://{host}"}
        for environ in ({}, AT_HOME):  # a setting of the project may lead anywhere
            message = refusal(given, environ)
            assert message == f"APIFY_API_BASE_URL = 'http://{host}': {cure}"
        for elsewhere in ({}, {"APIFY_IS_AT_HOME": ""}, {"APIFY_IS_AT_HOME": "0"}):
            message = refusal(None, {**given, **elsewhere})
            variable = "APIFY_API_BASE_URL (environment variable)"
            assert message == f"{variable} = 'http://{host}': {cure}"
        assert read(None, {**given, **AT_HOME}).api_base_url == f"http://{host}"


def test_wrong_addresses() -> None:
    wrong = ["api.apify.com", "localhost:8080", "ftp://api.apify.com", "https://", "https:///v2"]
    wrong += ["https://[::1", f"{APIFY}:port", f"{APIFY}:99999", "https://api .apify.com"]
    wrong += [f"{APIFY}\\x", f"{APIFY}?a=b", f"{APIFY}#a", "http://127.0.0.1?token=SECRET"]
    wrong += ["https://user:SECRET@api.apify.com", "https://user:SEC/SECRET@api.apify.com"]
    wrong += ["user:SECRET@api.apify.com", "https:/user:SECRET@api.apify.com"]
    wrong += [f"https://user:SECRET{sign}x@api.apify.com" for sign in "#?\n"]
    for url in (*wrong, "http://10.0.0.1/apify_api_SECRET", 5):
        message = refusal({"APIFY_API_BASE_URL": url})
        assert message.startswith("APIFY_API_BASE_URL = ")
        assert "https://" in message
        assert "SECRET" not in message


# What goes together


def test_backend() -> None:
    for backend, with_token in ((None, "apify"), ("auto", "apify"), ("sqlite", "sqlite")):
        assert read({"APIFY_RQ_BACKEND": backend}).backend == "sqlite"
        assert read({"APIFY_RQ_BACKEND": backend, **AT_APIFY}).backend == with_token
    assert read({"APIFY_RQ_BACKEND": "apify", **AT_APIFY}).backend == "apify"
    message = refusal({"APIFY_RQ_BACKEND": "apify"})
    assert "needs a token: set APIFY_TOKEN" in message
    assert "APIFY_RQ_BACKEND = 'sqlite'" in message


def test_no_worker_of_many_may_empty_the_queue() -> None:
    message = refusal({"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_PURGE_ON_START": True})
    assert "each worker that starts would delete what the others crawl" in message
    assert "'scrapy rq purge'" in message


def test_the_dataset_is_that_of_the_setting_or_of_the_run() -> None:
    for name in ("my-items", ID, "~my-items", "me~my-items"):
        assert read({"APIFY_RQ_DATASET": name}).dataset == name
    for wrong in ("a_b", "a~b~c", "a/b", "-", 1):
        assert "APIFY_RQ_DATASET" in refusal({"APIFY_RQ_DATASET": wrong})
    for variables in ("ACTOR", "APIFY"):
        names = [f"{variables}_DEFAULT_{kind}_ID" for kind in ("DATASET", "KEY_VALUE_STORE")]
        run = {**dict.fromkeys(names, ID), QUEUE_ID[0]: ID}
        config = read(AT_APIFY, run)
        assert (config.dataset, config.run_store) == (ID, ID)
        assert read({**AT_APIFY, "APIFY_RQ_DATASET": "mine"}, run).dataset == "mine"
        # What a named queue keeps has to be found by a later run.
        assert read({**AT_APIFY, "APIFY_RQ_NAME": "mine"}, run).run_store is None
        local = read(AT_APIFY, dict.fromkeys(run, "default"))
        assert (local.dataset, local.run_store) == (None, None)
        for name in names:
            assert name in refusal(AT_APIFY, {**run, name: "a/../b"})


def test_what_is_switched_off_is_checked_by_itself_only() -> None:
    for other in (AT_APIFY, {"APIFY_RQ_BACKEND": "apify"}, {"APIFY_RQ_ACCESS": "shared"}):
        assert not read({"APIFY_RQ_ENABLED": False, **other}).enabled
    assert "APIFY_RQ_WINDOW" in refusal({"APIFY_RQ_ENABLED": False, "APIFY_RQ_WINDOW": 0})


# Which queue: its id, its name, and whether it is the default one


def which(config: Config) -> tuple[str | None, str | None, bool]:
    return config.queue_id, config.queue_name, config.queue_is_default


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("environ", [{}, {QUEUE_ID[0]: "x" * 17}])
def test_named_queue(environ: Values, token: str | None) -> None:
    settings = {"APIFY_TOKEN": token, "APIFY_RQ_ID": None, "APIFY_RQ_NAME": None}
    for id in (ID, f" {ID}\n", "some.one_else-x~my-queue", "~my-queue"):
        for unset in (None, ""):
            given = {**settings, "APIFY_RQ_ID": id, "APIFY_RQ_NAME": unset}
            assert which(read(given, environ)) == (id.strip(), None, False)
    for name in ("My-Queue", "a", "a" * 63):
        given = {**settings, "APIFY_RQ_NAME": name}
        assert which(read(given, environ)) == (None, name, False)
    message = refusal({"APIFY_RQ_ID": ID, "APIFY_RQ_NAME": "mine"}, environ)
    assert f"APIFY_RQ_ID = '{ID}' and APIFY_RQ_NAME = 'mine'" in message
    assert "remove one" in message


def test_queue_of_the_run() -> None:
    derived = (None, "shop-quotes", True)
    for first, second, at_apify, in_sqlite in (
        (ID, "", (ID, None, True), (None, ID, True)),
        ("", ID, (ID, None, True), (None, ID, True)),
        (ID, "y" * 17, (ID, None, True), (None, ID, True)),
        ("", " ", derived, derived),
        ("default", "", derived, (None, "default", True)),
        ("", "default", derived, (None, "default", True)),
    ):
        environ = dict(zip(QUEUE_ID, (first, second), strict=True))
        assert which(read(AT_APIFY, environ)) == at_apify
        assert which(read(None, environ)) == in_sqlite


def test_arguments_belong_to_the_default_queue_only() -> None:
    arguments = Arguments("x", "site")
    config = read(arguments=arguments)
    assert which(config) == (None, default_name("shop", "quotes", "x"), True)
    assert (config.arguments, config.queue_is_of_spider) == (arguments, True)
    for named in ({"APIFY_RQ_NAME": "mine"}, {"APIFY_RQ_ID": ID}):
        config = read(named, arguments=arguments)
        assert (config.arguments, config.queue_is_of_spider) == (NO_ARGUMENTS, False)
        assert read(named, arguments=None) == config
    config = read(AT_APIFY, {QUEUE_ID[0]: ID}, arguments=arguments)
    assert which(config) == (ID, None, True)
    assert (config.arguments, config.queue_is_of_spider) == (NO_ARGUMENTS, False)
    with pytest.raises(ConfigError, match="cannot be found: name the queue with APIFY_RQ_NAME"):
        read(arguments=None)
    assert which(read(spider=None)) == (None, None, True)


# The environment of an Actor run


def test_run_id_is_the_client_key() -> None:
    for variable in RUN_ID:
        for id, expected in ((ID, ID), ("r" * 40, "r" * 32), (" ", None)):
            assert read(environ={variable: id}).client_key == expected
        assert read({"APIFY_RQ_CLIENT_KEY": "mine"}, {variable: "run"}).client_key == "mine"


def test_events_and_end_of_the_run() -> None:
    for variable in EVENTS:
        config = read(environ={variable: "wss://host/?key=secret"})
        assert config.events_url == "wss://host/?key=secret"
        assert "secret" not in repr(config)
        assert read(environ={variable: ""}).events_url is None
    noon = datetime(2030, 1, 31, 12, tzinfo=UTC)
    texts = ["2030-01-31T12:00:00.000Z", "2030-01-31T13:00:00+01:00", "2030-01-31T12:00:00"]
    for variable in TIMEOUT:
        assert {read(environ={variable: text}).timeout_at for text in texts} == {noon}
        assert read(environ={variable: ""}).timeout_at is None


@pytest.mark.parametrize("names", [RUN_ID, EVENTS, TIMEOUT, INPUT_KEY])
def test_newer_variable_goes_first(names: list[str]) -> None:
    values = {name: f"203{number}-01-01T00:00:00Z" for number, name in enumerate(names)}
    assert read(environ=values) == read(environ={names[0]: values[names[0]]}) != read()


def test_wrong_values_in_the_environment() -> None:
    wrong = [({}, "CRAWLEE_STORAGE_DIR", "~nobody-here/x", FOLDER)]
    wrong += [(AT_APIFY, name, "a/../b", "write the queue's id (17 letters") for name in QUEUE_ID]
    wrong += [({}, name, "a/../b", WHICH_NAME) for name in QUEUE_ID]
    wrong += [({}, name, "soon", "write a time such as 2030-01-31T12:00") for name in TIMEOUT]
    for settings, name, value, cure in wrong:
        message = refusal(settings, {name: value})
        assert message.startswith(f"{name} (environment variable) = '{value}': {cure}")


def test_what_else_a_run_has() -> None:
    def run(environ: Values) -> dict[str, Any]:
        found = dataclasses.asdict(read(environ=environ).run)
        return {name: value for name, value in found.items() if value != NO_RUN[name]}

    assert run({}) == {}
    folder = {"local_folder": Path.cwd() / "here"}
    cases: list[tuple[Values, Values]] = [
        ({RUN_ID[0]: "run"}, {"id": "run"}),
        ({"ACTOR_DEFAULT_KEY_VALUE_STORE_ID": "default"}, {}),  # of a run on this machine
        ({"APIFY_DEFAULT_KEY_VALUE_STORE_ID": ID}, {"key_value_store_id": ID}),
        ({"CRAWLEE_STORAGE_DIR": "here"}, folder),
        ({"APIFY_LOCAL_STORAGE_DIR": "here", **AT_HOME}, {}),
        ({"CRAWLEE_PURGE_ON_START": "1"}, {}),
        ({"APIFY_LOCAL_STORAGE_DIR": "here", "CRAWLEE_PURGE_ON_START": "1"}, {"purge": True}),
        ({"APIFY_LOCAL_STORAGE_DIR": "here", "APIFY_PURGE_ON_START": "0"}, {"purge": False}),
        ({"ACTOR_MAX_TOTAL_CHARGE_USD": "1.5"}, {"max_charge": Decimal("1.5")}),
        *(({"ACTOR_MAX_TOTAL_CHARGE_USD": none}, {}) for none in ("", "0", "inf")),
        ({"APIFY_PROXY_PASSWORD": "p"}, {"proxy_password": "p"}),
        ({"APIFY_PROXY_HOSTNAME": "h"}, {"proxy_address": "http://h:8000"}),
        *(({name: "KEY"}, {"input_key": "KEY"}) for name in INPUT_KEY),
    ]
    for environ, expected in cases:
        more = folder if "purge" in expected else {}
        assert run(environ) == {**expected, **more}, environ
    assert "SECRET" not in repr(read(environ={"APIFY_PROXY_PASSWORD": "SECRET"}))


def test_backend_under_apify_run() -> None:
    """It sets a token for everybody who is logged in, who has not asked for the cloud."""
    local = {"CRAWLEE_STORAGE_DIR": "./storage", "APIFY_LOCAL_STORAGE_DIR": "./storage"}
    assert read(environ={**AT_APIFY, **local}).backend == "sqlite"
    address = {"APIFY_API_BASE_URL": "http://127.0.0.1:8080"}
    assert read(environ={**AT_APIFY, **local, **address}).backend == "apify"
    assert read(environ={**AT_APIFY, **local, **AT_HOME}).backend == "apify"
    for settings in (AT_APIFY, address, {"APIFY_RQ_BACKEND": "apify"}):
        assert read(settings, {**AT_APIFY, **local}).backend == "apify"
