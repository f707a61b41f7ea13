"""A spider with an argument of each kind that an input schema tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from scrapy import Spider


class Base(Spider):
    start_urls = ("https://a.example/",)  # type: ignore[assignment]

    def __init__(self, language: str = "en", **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Typed(Base):
    name = "typed"

    def __init__(
        self,
        category: str,
        plain=1,  # type: ignore[no-untyped-def]
        depth: int = 3,
        ratio: float = 0.5,
        fast: bool = False,
        words: list[str] | None = None,
        mapping: Mapping[str, int] = MappingProxyType({}),
        rows: Sequence[Any] = (),
        order: Literal["up", "down"] = "up",
        either: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
