"""The arguments of a spider, as text: one form that is always the same, and one for people.

A value counts as ``values`` writes it, with its type. What ``values`` refuses (a connection, an
object of the project) counts by its type only, a function or class by its name: such objects rarely
say which crawl it is, and their ``repr`` would be another one in each process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from inspect import isclass, isroutine
from typing import Any, Final

from scrapy_apify_rq.entries.names import short, type_name
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.identity import Arguments

# scrapyd passes them, and they say which job it is: another one each time that a crawl is started.
# https://github.com/scrapy/scrapyd/blob/master/scrapyd/utils.py (get_crawl_args)
_OF_THE_JOB: Final = frozenset(("_job", "_version"))
# In a name or a value. The last two: users in URLs, and Apify's tokens.
_SECRET: Final = re.compile(
    r"pass|pwd|token|secret|cookie|credential|session|signature|jwt|bearer"
    r"|key(?!word)|auth(?!ors?(?![a-z]))|//.*@|apify_[a-z]+_",
    re.IGNORECASE | re.DOTALL,
)
_HIDDEN: Final = "***"


def arguments_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """Describe the arguments with which ``Crawler.crawl()`` was called."""
    named = {name: kwargs[name] for name in sorted(kwargs) if name not in _OF_THE_JOB}
    if not args and not named:
        return Arguments()
    vague: list[str] = []

    def stable(name: str, value: Any) -> Any:
        try:
            return encode(value, name)
        except CodecError:
            if isclass(value) or isroutine(value):
                return {"$name": f"{value.__module__}.{value.__qualname__}"}
            vague.append(name)
            return {"$type": type_name(value)}

    placed = {f"#{number}": value for number, value in enumerate(args, start=1)}
    canonical = json.dumps(
        [
            [stable(name, value) for name, value in placed.items()],
            {name: stable(name, value) for name, value in named.items()},
        ],
        sort_keys=True,
    )
    # Nothing says what an argument without a name is.
    texts = [f"{name}={_HIDDEN}" for name in placed]
    texts += [f"{name}={_shown(name, value)}" for name, value in named.items()]
    return Arguments(canonical, ", ".join([*placed, *named]), ", ".join(texts), ", ".join(vague))


def _shown(name: str, value: Any) -> str:
    if type(value) not in (str, int, float, bool, type(None)):
        return "..."
    text = repr(value)
    return _HIDDEN if _SECRET.search(name) or _SECRET.search(text) else short(text)
