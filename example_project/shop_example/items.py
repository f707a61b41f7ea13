"""What the spider brings home."""

from dataclasses import dataclass


@dataclass
class Product:
    """One product page.

    ``found_in`` and ``position`` come with the request (``cb_kwargs`` and ``meta``), all else from
    the page. They tell which link was followed first, so they can differ from crawl to crawl.
    """

    sku: str
    name: str
    price: float
    category: str
    url: str
    found_in: str
    position: int | None
