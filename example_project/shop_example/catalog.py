"""What the shop sells and what its pages say: no state, no network, the same at every run.

Besides ordinary pages it has what makes crawls go wrong. Most products are linked once, so that a
crawl which loses a request loses a product:

* ``/p/bo1`` and ``/p/BO1`` are different products, and so in each category;
* ``/~outlet`` and the pages of a category are linked in several spellings;
* ``/old/...`` are redirects, one of them to a page that is linked directly as well;
* ``RARE...`` are found by the searches alone, which differ in nothing but their body;
* ``flaky`` pages fail twice (the server counts), ``/p/ERROR`` fails always, ``/p/GONE`` is a 404,
  and the price of ``/p/UNPRICED`` is no number.
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
    """An answer of the shop."""

    body: str = ""
    status: int = 200
    location: str = ""
    content_type: str = "text/html"


@dataclass(frozen=True)
class Product:
    """Something to buy; ``shelf`` is the page of its category that lists it."""

    sku: str
    name: str
    price: str
    category: str
    shelf: int = 1


class Catalog:
    """A shop with so many products in its categories, and a few elsewhere."""

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
        """The products which a crawl that loses nothing finds."""
        return frozenset(self._products) - {"UNPRICED"}

    def page(self, path: str, form: Mapping[str, str]) -> Page:
        """Answer a path, unquoted, with the fields of its query or of the posted form."""
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
        # The home page names the category first and this link the page: one page, two URLs.
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
        # Only the first product of a shelf is named again: were all of them, a lost link would
        # be made good by the next product.
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
        # The first product of a category is the lower-case twin of the second.
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
