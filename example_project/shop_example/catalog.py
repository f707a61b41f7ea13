"""The shop's products and pages: no state, no network, the same in every run.

Most products are linked only once, so a crawl that loses a request loses a product. Besides
ordinary pages, the shop has pages that are hard to crawl:

* ``/p/bo1`` and ``/p/BO1`` are different products; each category has such a pair;
* ``/~outlet`` and the pages of a category are linked in several spellings;
* ``/old/...`` are redirects, one of them to a page that is also linked directly;
* ``RARE...`` are found only by the searches, whose requests differ only in their body;
* ``flaky`` pages fail twice (the server counts), ``/p/ERROR`` always fails, ``/p/GONE`` is a 404,
  and the price of ``/p/UNPRICED`` is not a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

CATEGORIES = ("books", "chairs", "clocks", "garden", "kitchen", "lamps", "shoes", "toys")
COLOURS = ("red", "blue", "green", "white", "black")
SIZES = ("small", "large", "folding")
SEARCHES = ("red", "blue", "green")
PER_PAGE = 10

_OLD_PAGES = {
    "1": (301, "/p/NEW1"),
    "2": (302, "/p/NEW2"),
    "3": (301, "/p/BO1"),
    "4": (302, "/old/5"),
    "5": (301, "/p/NEW3"),
}
_OUTLET_LINKS = (
    *(f"/old/{number}" for number in "1234"),
    *("/p/CAFÉ", "/p/CAF%C3%89"),
    *("/p/UNPRICED", "/p/ERROR", "/p/GONE"),
)


@dataclass(frozen=True)
class Page:
    """A response of the shop."""

    body: str = ""
    status: int = 200
    location: str = ""
    content_type: str = "text/html"


@dataclass(frozen=True)
class Product:
    """A product. ``shelf`` is the number of the category page that lists it."""

    sku: str
    name: str
    price: str
    category: str
    shelf: int = 1


class Catalog:
    """A shop with ``products`` products in its categories, and a few more elsewhere."""

    def __init__(self, products: int) -> None:
        self._shelves: dict[tuple[str, int], list[Product]] = {}
        for index in range(products):
            product = _product(index)
            self._shelves.setdefault((product.category, product.shelf), []).append(product)
        self._hidden = list(_hidden_products())
        self._products = {product.sku: product for product in self._all_products()}
        self.flaky = frozenset(f"/p/{category[:2].upper()}5" for category in CATEGORIES[:4])

    @property
    def skus(self) -> frozenset[str]:
        """The products that a complete crawl finds."""
        return frozenset(self._products) - {"UNPRICED"}

    def page(self, path: str, form: Mapping[str, str]) -> Page:
        """Return the page at an unquoted path, given the fields of the query or posted form."""
        match path.split("/")[1:]:
            case [""]:
                return _home()
            case ["list"]:
                return self._listing(form.get("category", ""), int(form.get("page", 1)))
            case ["p", sku]:
                return self._product(sku)
            case ["search"]:
                return self._search(form.get("q", ""))
            case ["~outlet"]:
                return _html("outlet", *(_link(href, href, "product") for href in _OUTLET_LINKS))
            case ["old", number] if number in _OLD_PAGES:
                status, location = _OLD_PAGES[number]
                return Page(status=status, location=location)
            case ["robots.txt"]:
                return Page("User-agent: *\nDisallow: /private/\n", content_type="text/plain")
            case ["private", *_]:
                return _html("For employees only")
        return Page("Not found", status=404)

    def _all_products(self) -> Iterable[Product]:
        for shelf in self._shelves.values():
            yield from shelf
        yield from self._hidden

    def _listing(self, category: str, number: int) -> Page:
        shelf = self._shelves.get((category, number))
        if shelf is None:
            return Page("Not found", status=404)
        pages = []
        # The home page writes the same URL with the parameters in the other order.
        if number > 1:
            pages.append(_link(f"/list?page={number - 1}&category={category}", "previous"))
        if (category, number + 1) in self._shelves:
            pages.append(_link(f"/list?category={category}&page={number + 1}", "next"))
        return _html(category, *_product_links(shelf), f"<p class=pages>{' '.join(pages)}</p>")

    def _product(self, sku: str) -> Page:
        if sku == "ERROR":
            return Page("Internal error", status=500)
        product = self._products.get(sku)
        if product is None:
            return Page("Not found", status=404)
        # Link only the first product of the shelf. If products linked each other, a crawl could
        # lose a link and still find its product.
        shelf = self._shelves.get((product.category, product.shelf), [product])
        return _html(
            product.name,
            f"<p>Number <b class=sku>{product.sku}</b> in <b class=category>{product.category}</b>",
            f"<p>Price: <b class=price>{product.price}</b>",
            _link(f"{_path(shelf[0])}#reviews", "Others bought", "related"),
        )

    def _search(self, query: str) -> Page:
        found = [product for product in self._products.values() if query in product.name.split()]
        rare = [product for product in found if product.category == "rare"]
        return _html(f"Results for {query}", *_product_links(found[:3] + rare))


def _product(index: int) -> Product:
    number, which = divmod(index, len(CATEGORIES))
    category = CATEGORIES[which]
    return Product(
        # The SKUs of the first and the second product of a category differ only in case.
        sku=f"{category[:2].upper()}{number}" if number else f"{category[:2]}1",
        name=f"{SIZES[number % 3]} {COLOURS[number % 5]} {category} no. {number}",
        price=f"{5 + index * 37 % 400}.{index * 13 % 100:02}",
        category=category,
        shelf=number // PER_PAGE + 1,
    )


def _hidden_products() -> Iterable[Product]:
    yield from (Product(f"NEW{n}", f"renamed product {n}", f"{n}0.50", "outlet") for n in (1, 2, 3))
    yield from (Product(f"RARE-{q}", f"rare {q} thing", "999.00", "rare") for q in SEARCHES)
    yield Product("CAFÉ", "café cup", "7.25", "outlet")
    yield Product("UNPRICED", "one of a kind", "on request", "outlet")


def _home() -> Page:
    nav = [_link(f"/list?category={category}&page=1", category) for category in CATEGORIES]
    nav += [_link(f"/list?page=1&category={category}#top", category) for category in CATEGORIES]
    nav += [_link("/~outlet", "outlet"), _link("/%7Eoutlet", "outlet")]
    nav += [_link("/private/stock", "stock")]
    options = "".join(f"<option>{query}</option>" for query in SEARCHES)
    form = f"<form action=/search method=post><select name=q>{options}</select></form>"
    return _html("The shop", f"<nav>{' '.join(nav)}</nav>", form)


def _product_links(products: Iterable[Product]) -> Iterable[str]:
    return (_link(_path(product), product.name, "product") for product in products)


def _path(product: Product) -> str:
    return f"/p/{quote(product.sku)}"


def _link(href: str, text: str, kind: str = "") -> str:
    return f'<a class="{kind}" href="{href.replace("&", "&amp;")}">{text}</a>'


def _html(title: str, *parts: str) -> Page:
    head = f"<!DOCTYPE html><html><head><title>{title}</title></head>"
    return Page(f"{head}<body><h1>{title}</h1>{' '.join(parts)}</body></html>")
