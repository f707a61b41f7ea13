"""Items as JSON: an exporter sees the same of what comes back."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import io
from collections.abc import Callable
from typing import Any

import attr
import pytest
from pydantic import BaseModel, ConfigDict, field_validator
from scrapy import Field, Item
from scrapy.exporters import BaseItemExporter, CsvItemExporter, JsonLinesItemExporter
from scrapy.exporters import XmlItemExporter as Xml

from scrapy_apify_rq.entries.saved_items import ItemCodec
from scrapy_apify_rq.errors import CodecError


class Product(Item):
    name = Field(serializer=str.upper)
    price = Field()


@dataclasses.dataclass
class Doubled:
    price: int
    unset: str = ""
    later: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self.price *= 2


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str


@attr.define
class Attrs:
    _name: str
    price: int = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    price: int

    @field_validator("price")
    @classmethod
    def double(cls, price: int) -> int:
        return price * 2

    def model_post_init(self, context: Any) -> None:
        self.price += 1


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what an exporter writes"


class OwnDict(dict[str, Any]):
    def __init__(self, needed: int) -> None:
        super().__init__(needed=needed)


class Level(enum.IntEnum):
    HIGH = 3


class Zone(dt.tzinfo):
    """As those of dateutil and pytz."""

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=2)

    def tzname(self, moment: dt.datetime | None) -> str | None:
        return None

    def dst(self, moment: dt.datetime | None) -> None: ...


class Moment(dt.datetime):
    """As that of pendulum."""


Point = collections.namedtuple("Point", "x y")
ITEMS = [
    {"a": [1, {"b": None}], "$c": "\ud800", 4: (2, 3)},
    {"$saved": ["x", []]},
    Product(name="tea", price=3),
    Product(price=3),
    Doubled(2),
    Frozen("tea"),
    Attrs("tea", 1),
    Model(price=2, extra=[1]),
    OwnDict(3),
    collections.OrderedDict(b=1, a=2),
    collections.defaultdict(list, {"b": [1]}),
    {"text": Text("tea"), "parts": [Text("a")]},
    {"at": dt.datetime(2026, 1, 2, 3, tzinfo=Zone()), "and": Moment(2026, 1, 2, 3)},
]


def exported(make: Callable[..., BaseItemExporter], item: Any) -> bytes:
    file = io.BytesIO()
    exporter = make(file)
    exporter.start_exporting()
    exporter.export_item(item)
    exporter.finish_exporting()
    return file.getvalue()


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_exporters_see_the_same(item: Any) -> None:
    codec = ItemCodec()
    texts = [codec.write(item) for _ in range(2)]  # the second time its class is known
    assert texts[0] == texts[1]
    restored = codec.read(texts[0])
    assert type(restored) is type(item)
    for make in (JsonLinesItemExporter, CsvItemExporter, Xml):
        try:
            expected = exported(make, item)
        except (TypeError, UnicodeError):  # it cannot write this item
            continue
        assert exported(make, restored) == expected


def test_parts_become_what_json_makes_of_them() -> None:
    codec, item = ItemCodec(), {"point": Point(1, 2), "nested": Doubled(3), "enum": Level.HIGH}
    expected = exported(JsonLinesItemExporter, item)
    assert exported(JsonLinesItemExporter, codec.read(codec.write(item))) == expected


def test_it_is_written_at_once() -> None:
    item = {"a": [1]}
    text = ItemCodec().write(item)
    item["a"].append(2)
    assert ItemCodec().read(text) == {"a": [1]}


def local() -> Any:
    class Local(Item):
        a = Field()

    return Local(a=1)


@pytest.mark.parametrize(
    ("item", "reason"),
    [({"a": object()}, "object"), (local(), "top level of a module"), (3, "int")],
    ids=["value", "class", "no item"],
)
def test_what_cannot_be_written(item: Any, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        ItemCodec().write(item)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"$saved": 3}',
        '{"$saved": ["no.module:Item", []]}',
        '{"$saved": ["builtins:int", [["a", 1]]]}',
        '{"$saved": ["tests.unit.test_saved_items:Product", [["gone", 1]]]}',
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(CodecError):
        ItemCodec().read(text)
