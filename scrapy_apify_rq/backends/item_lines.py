"""Saved items as lines of an export:

    {"#scrapy": {"entry": ID, "key": KEY}, "item": ITEM}

``entry`` is the entry that it was scraped from, or null.
"""

from __future__ import annotations

import json
from typing import Final

from scrapy_apify_rq.backends.base import SavedItem

BEGIN: Final = b'{"#scrapy": '


def line(item: SavedItem) -> bytes:
    about = json.dumps({"entry": item.entry, "key": item.key})
    return BEGIN + f'{about}, "item": {item.json}}}\n'.encode()
