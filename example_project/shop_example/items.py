"""The items that the spider yields."""

from dataclasses import dataclass


@dataclass
class Product:
    """One product.

    ``found_in`` and ``position`` come from the request (``cb_kwargs`` and ``meta``), the rest from
    the page. They depend on which link was followed first, so they can differ between crawls.
    """

    sku: str
    name: str
    price: float
    category: str
    url: str
    found_in: str
    position: int | None
