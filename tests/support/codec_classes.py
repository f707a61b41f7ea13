"""Items, requests and a spider that entries name: classes must be found by their names."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import json
import threading
from collections import namedtuple
from decimal import Decimal
from typing import Any, NamedTuple

import attr
import attrs
import pydantic
import scrapy
from scrapy import Request
from scrapy.http import JsonRequest


class Ran(BaseException):
    """Code ran that no entry may make run. No ``except Exception`` hides it."""


def run(*_: object) -> Any:
    raise Ran


class Exploit:
    """Its pickle runs code when it is read."""

    def __reduce__(self) -> Any:
        return run, ()


# Items


class Product(scrapy.Item):
    name = scrapy.Field()
    price = scrapy.Field()
    related = scrapy.Field()
    locals()["\ud800"] = scrapy.Field()


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Order:
    price: int
    count: int = 1
    total: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.price * self.count)


@dataclasses.dataclass(slots=True, kw_only=True)
class Visit:
    url: Any
    number: int = dataclasses.field(init=False)
    kind: str = dataclasses.field(init=False, default="page")


@dataclasses.dataclass(eq=False)
class Hashing:
    x: Any

    def __hash__(self) -> int:
        return hash(self.x.lower())


@attr.s
class OldAttrs:
    __secret = attr.ib()
    other = attr.ib(factory=list)
    seen = attr.ib(init=False, default=0)


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(alias="Name")
    nick: str = pydantic.Field("", validation_alias=pydantic.AliasChoices("Nick", "nickname"))
    seen: dt.datetime = pydantic.Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    tags: set[str] = set()
    price: Decimal | None = None
    _note: str = pydantic.PrivateAttr("n")


class Open(pydantic.BaseModel, extra="allow", frozen=True, populate_by_name=True):
    a: int = pydantic.Field(1, alias="A")


class Wrapper(pydantic.RootModel[list[int]]):
    pass


Pair = attrs.make_class(
    "Pair", {"_left": attrs.field(), "right": attrs.field(alias="r")}, frozen=True, slots=True
)

# Values that are no items, of the project or of others


class Color(enum.Enum):
    RED = (255, 0, 0)
    ALIAS = RED


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Step(NamedTuple):
    url: Any
    depth: int = 0


class Plain:
    """Its constructor must not run when it is read, because it may do anything."""

    def __init__(self, *_: object) -> None:
        run()

    @classmethod
    def of(cls, **attributes: Any) -> Plain:
        made = cls.__new__(cls)
        vars(made).update(attributes)
        return made


class Slotted:
    __slots__ = ("__private", "here", "not_here")

    def __init__(self, here: Any) -> None:
        self.here = self.__private = here


class Name(str):
    """A text that knows where it is from."""

    source: Any = None


class Stack(list[Any]):
    pass


class Row(tuple[Any, ...]):
    """No named tuple, which has as many elements as fields."""

    __slots__ = ()
    _fields = ("a", "b")


class Table(dict[Any, Any]):
    __slots__ = ("title",)


class Closing:
    def __del__(self) -> None:
        """Whatever it does, it must not do it to the attributes that a stranger gave it."""


class Counted(int):
    def __reduce__(self) -> Any:
        return run, ()


def a_function(page: Any) -> Any:
    return page


# What is no item, or none that comes back


def _data(name: str, *fields: Any, bases: tuple[type, ...] = (), **namespace: Any) -> Any:
    own = {"__module__": __name__, **namespace}
    return dataclasses.make_dataclass(name, fields, bases=bases, namespace=own)


Number = enum.IntEnum("Number", ["ONE"])
Named = namedtuple("Named", ["a"])
Text = type("Text", (str,), {})
Parsed = attrs.make_class("Parsed", {"text": attrs.field(converter=json.loads)})
DataError = attrs.make_class("DataError", ["a"], bases=(Exception,), auto_exc=True)
Growing = _data("Growing", "tags", __post_init__=lambda self: self.tags.append("new"))
NeedsMore = _data("NeedsMore", "a", ("b", dataclasses.InitVar[int]))
DataList = _data("DataList", ("a", int, 0), bases=(list,))
IMPOSTOR = _data("Point", "x")(1)  # it names itself like another one
LOCAL = _data("Local", "a", __qualname__="f.<locals>.Local")(1)
Meta = type("Meta", (type,), {"__getattr__": run})
Trap = Meta("Trap", (), {})
Liar = type("Liar", (), {"__class__": property(run)})


class Holder:
    class Inner:
        pass

    def method(self, response: Any) -> None: ...

    value = property(run)
    make = classmethod(run)
    point = Point(1)
    liar = Liar()


# Requests


class TokenRequest(Request):
    """What a project may have: attributes of its own, given by keyword. The number is at most 9."""

    attributes: tuple[str, ...] = (*Request.attributes, "token", "number")

    def __init__(self, *args: Any, token: Any = "", number: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.token = token
        self.number = min(number, 9)


class PayloadRequest(Request):
    """Its body is made of its payload, whatever body it is given."""

    attributes: tuple[str, ...] = (*Request.attributes, "payload")

    def __init__(self, *args: Any, payload: Any = None, **options: Any) -> None:
        super().__init__(*args, **{**options, "body": json.dumps(payload)})
        self.payload = payload


class UserRequest(Request):
    """Does not list its user, so a copy lacks it."""

    def __init__(self, *args: Any, user: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.user, self.lock = user, threading.Lock()

    @functools.cached_property
    def host(self) -> str:
        return self.url.split("/")[2]


class SlottedRequest(Request):
    __slots__ = ("user",)


class Positional(Request):
    def __init__(self, number: int) -> None:
        super().__init__(f"https://example.com/{number}")


class ApiRequest(JsonRequest):
    """A subclass that constructs nothing, as projects have them to tell requests apart."""

    __slots__ = ()

    def describe(self) -> str:
        return f"{self.method} {self.url}"


class Posting(Request):
    method = property(lambda self: "POST", lambda self, value: None)  # type: ignore[assignment]


class Mixin:
    def _set_body(self, body: Any) -> None:
        self._body = b"mixed in"


Mixed = type("Mixed", (Mixin, Request), {})

# A spider


class MethodsSpider(scrapy.Spider):
    """Has methods that an entry may name, and much that it may not."""

    name = "spider"

    def __init__(self) -> None:
        super().__init__()
        self.instance_alias = self.parse_page
        self.helper_method = Holder().method

    def parse(self, response: Any) -> None: ...
    def parse_page(self, response: Any) -> None: ...
    def failed(self, failure: Any) -> None: ...
    def __private(self, response: Any) -> None: ...

    def private_request(self, url: str) -> Request:
        return Request(url, self.__private, errback=self.__private)

    alias = parse_page
    renamed = functools.wraps(parse_page)(lambda self, response: None)
    tempting = property(run)
    of_class = classmethod(run)
    static = staticmethod(run)

    Inner = Holder.Inner


SPIDER = MethodsSpider()
