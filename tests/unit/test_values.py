"""Values that cannot be stored are refused when they are written, not when they are sent."""

from __future__ import annotations

import dataclasses
import sys

import pydantic
import pytest
import scrapy

from scrapy_apify_rq.entries.item_classes import class_path
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError

ODD = "\ud800"


class Open(pydantic.BaseModel, extra="allow"):
    pass


class Odd(scrapy.Item):
    locals()[ODD] = scrapy.Field()


def test_a_field_whose_name_has_a_lone_surrogate_is_refused() -> None:
    model = Open()
    setattr(model, ODD, 1)
    for value in (model, Odd({ODD: 1})):
        with pytest.raises(CodecError, match=r"the name of field .* cannot be written as JSON"):
            encode(value)


def test_a_class_whose_name_has_a_lone_surrogate_is_refused() -> None:
    cls = dataclasses.make_dataclass("Made", ["x"])
    cls.__module__, cls.__qualname__ = __name__, ODD
    setattr(sys.modules[__name__], ODD, cls)
    try:
        with pytest.raises(CodecError, match="cannot be found again"):
            class_path(cls)
    finally:
        delattr(sys.modules[__name__], ODD)
