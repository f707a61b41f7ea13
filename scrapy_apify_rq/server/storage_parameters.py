"""What callers send to create, list and change storages of any kind: queues, datasets, stores.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from aiohttp import web

from scrapy_apify_rq.limits import NAME_LENGTH, is_name
from scrapy_apify_rq.server.bodies import read_json
from scrapy_apify_rq.server.errors import invalid
from scrapy_apify_rq.server.parameters import Count, Parameters, up_to

USER_ID: Final = "embeddedQueueUser"  # there is only one user
USERNAME: Final = "local"

_ACCESSES: Final = (
    "ANYONE_WITH_ID_CAN_READ",
    "ANYONE_WITH_NAME_CAN_READ",
    "FOLLOW_USER_SETTING",
    "RESTRICTED",
)
_COLUMNS: Final = {"name": "name", "title": "title", "generalAccess": "general_access"}


class ListParameters(Parameters):
    limit: Annotated[Count, up_to(1000)] = 1000
    offset: Count = 0
    desc: bool = False
    unnamed: bool = False
    ownership: Literal["ownedByMe", "sharedWithMe"] = "ownedByMe"


class _CreateParameters(Parameters):
    name: str | None = None


def new_name(request: web.Request) -> str | None:
    name = _CreateParameters.read(request).name
    if name is not None:
        _check_name(name)
    return name


async def read_changes(request: web.Request) -> dict[str, str | None]:
    """The columns that an update changes."""
    raw = await read_json(request, dict)
    values = {_COLUMNS[name]: raw[name] for name in raw.keys() & _COLUMNS.keys()}
    for name, value in values.items():
        if not isinstance(value, str | None):
            raise invalid(f"{name} must be a text")
    if values.get("name") is not None:
        _check_name(values["name"])
    if values.get("general_access") not in (None, *_ACCESSES):
        raise invalid(f"generalAccess must be one of {', '.join(_ACCESSES)}")
    return values


def page_of(items: list[dict[str, Any]], total: int, asked: ListParameters) -> dict[str, Any]:
    """The answer to a list. Others share nothing with the one user of this server."""
    if asked.ownership == "sharedWithMe":
        items, total = [], 0
    return {
        "total": total,
        "offset": asked.offset,
        "limit": asked.limit,
        "desc": asked.desc,
        "count": len(items),
        "unnamed": asked.unnamed,
        # Choice: unnamed ones have an empty name, since the description requires a text here.
        "items": [{**item, "name": item.get("name") or "", "username": USERNAME} for item in items],
    }


def _check_name(name: str) -> None:
    if len(name) > NAME_LENGTH:
        raise invalid(f"Name must have at most {NAME_LENGTH} characters")
    if not is_name(name):
        raise invalid(
            "Name can only contain letters 'a' through 'z', the digits '0' through '9', and the"
            " hyphen ('-') but only in the middle of the string (e.g. 'my-value-1')"
        )
