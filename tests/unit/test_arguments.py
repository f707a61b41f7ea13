"""The arguments of a spider as text."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.arguments import arguments_of
from scrapy_apify_rq.identity import NO_ARGUMENTS, Arguments


class Connection:
    """What only this process has."""


def of(*args: Any, **kwargs: Any) -> Arguments:
    return arguments_of(args, kwargs)


def test_arguments_that_are_the_same() -> None:
    assert of() == of(_job="1", _version="2") == NO_ARGUMENTS
    assert of(a="1", b="2") == of(b="2", _job="3", a="1")
    assert of(a={"x": 1, "y": 2}, b={1, 2, 3}) == of(b={3, 2, 1}, a={"y": 2, "x": 1})


def test_arguments_that_differ() -> None:
    several = [
        *(
            of(a=value)
            for value in ("1", 1, 1.5, True, None, b"1", [1], (1,), {"1": 1}, "", "\udcff")
        ),
        *(of(a=value) for value in (len, print, Path, Connection(), object())),
        *(of("1"), of("1", "1"), of(b="1"), of(a="1", b="1"), of(a='1", "b": "1')),
    ]
    assert len({one.canonical for one in several}) == len(several)


def test_each_process_has_the_same_text() -> None:
    """Though it has another order of sets, and other addresses of objects."""
    code = (
        "from tests.unit.test_arguments import Connection, of\n"
        "print(of(a=set(map(str, range(50))), b=Connection(), c=len).canonical)"
    )
    root = Path(__file__).parents[2]
    other = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root)
    assert other == f"{of(a=set(map(str, range(50))), b=Connection(), c=len).canonical}\n"


def test_objects_count_by_type() -> None:
    assert of(a=Connection()) == of(a=Connection())
    assert of(a=Connection(), b="1").vague == "a"
    assert of(a=len, b=Connection).vague == ""


NAMES = "password api_key apikey KEY token authToken Authorization cookies pwd"


@pytest.mark.parametrize(
    "secret",
    [
        *({name: "SECRET"} for name in NAMES.split()),
        {"url": "https://user:SECRET@site/"},
        {"url": "https://site/?page=1&access_token=SECRET"},
        {"form": '{"password": "SECRET"}'},
        {"x": "apify_api_SECRET"},
        {"x": ["SECRET"]},
        {"x": {"SECRET": 1}},
        {"x": b"SECRET"},
    ],
    ids=str,
)
def test_secrets_are_not_shown(secret: dict[str, Any]) -> None:
    ((name, _),) = secret.items()
    arguments = of(site="a", **secret)
    assert name in arguments.names
    assert name in arguments.shown
    assert "site='a'" in arguments.shown
    for text in (arguments.shown, arguments.names, repr(arguments), f"{arguments.vague}"):
        assert "SECRET" not in text
    assert "SECRET" not in of("SECRET").shown
    assert of("SECRET").names == "#1"


def test_what_is_shown() -> None:
    arguments = of(site="a", keyword="red\n", author="Jane", n=1, pages=[1], token="x")
    assert arguments.names == "author, keyword, n, pages, site, token"
    shown = "author='Jane', keyword='red\\n', n=1, pages=..., site='a', token=***"
    assert arguments.shown == shown
    assert re.fullmatch(r"a='x+ \.\.\. x+'", of(a="x" * 1000).shown)
