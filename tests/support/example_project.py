"""The example project: its shop in the test's process, and its spider there or in a ``Project``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from shop_example import settings
from shop_example.site import Hit, ShopServer

EXAMPLE = Path(__file__).parents[2] / "example_project"
PRODUCTS = 207
"""So many items has the shop if it lists 200."""


def shop_settings(shop: ShopServer, items: Path | None = None) -> dict[str, Any]:
    """Those of the example, for a crawl of this shop that writes its items to this file."""
    values = {name: value for name, value in vars(settings).items() if name.isupper()}
    del values["EXTENSIONS"]  # it serves the shop
    del values["ADDONS"], values["SPIDER_MODULES"]  # all tests set them
    feeds = {} if items is None else {str(items): {"format": "jsonlines"}}
    return {**values, "SHOP_URL": shop.url, "FEEDS": feeds}


def shop_hits(shop: ShopServer) -> Counter[Hit]:
    """All requests so far, but those for robots.txt, which every run makes anew."""
    return Counter(hit for hit in shop.hits if hit.path != "/robots.txt")
