"""The unique keys of Crawlee, for crawls that share a queue with it.

Two programs deduplicate against each other only if they give a request the same key to the byte.
Crawlee's default key is the normalised URL alone, so that it takes requests to one URL for the
same, whatever their method and body. A program in which they differ sets ``useExtendedUniqueKey``.
So does a Scrapy crawl here, for all requests but a plain GET: it would lose pages otherwise.

None of this is specified. We reproduce what crawlee 1.11.0 with yarl 1.25.1 and @crawlee/core
3.18.1 do; tests/unit/test_unique_keys.py replays their results. Crawlee for Python lower-cases the
whole URL, so addresses that differ only in case are one page to it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus

from yarl import URL

# Other headers do not enter the extended key.
_KEY_HEADERS: Final = frozenset(("accept", "accept-language", "authorization", "content-type"))
# The parts of a URL as browsers and Node.js see them. They take a backslash for a slash.
_WEB_URL: Final = re.compile(
    r"(?P<scheme>https?):[/\\]*(?:[^/\\?#]*@)?(?P<host>[^/\\?#@:\s\[\]]+|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{0,5}))?(?P<path>[/\\][^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# What they leave as it is in a path.
_SAFE_IN_PATH: Final = "!$%&'()*+,-./:;=@[\\]^_|~"


def url_key(url: str, method: str, body: bytes, headers: Iterable[tuple[str, str]]) -> str:
    """Return the default key of Crawlee for Python."""
    if method.upper() == "GET" and not body:
        return normalize_url(url)
    return extended_key(url, method, body, headers)


def extended_key(url: str, method: str, body: bytes, headers: Iterable[tuple[str, str]]) -> str:
    """Return the extended key of Crawlee for Python, ``METHOD|headers|payload|url``, of a request
    without a session. ``apify.scrapy`` has no other keys.

    If a header occurs twice, the last one counts. Join several values of one header first, as they
    are joined in the entry.
    """
    return f"{method.upper()}|{_headers_hash(headers)}|{_short_hash(body)}|{normalize_url(url)}"


def url_key_of_javascript(
    url: str, method: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> str:
    """Return the default key of Crawlee for JavaScript; its extended one is ``METHOD(hash):url``.

    Headers do not enter either.
    """
    method = method.upper()
    normalized = normalize_web_url(url)
    if method == "GET" and not body:
        return normalized
    hash_ = base64.b64encode(sha256(body).digest(), altchars=b"--").decode() if body else ""
    return f"{method}({re.sub('[-=]', '', hash_)[:8]}):{normalized}"


# As Crawlee for Python writes URLs


def normalize_url(url: str) -> str:
    """Return the URL as Crawlee for Python writes it in a key; unchanged if it cannot be parsed."""
    try:
        return _normalized(URL(url.strip()))
    except ValueError:
        return url


def _normalized(url: URL) -> str:
    query = sorted(pair for pair in url.query.items() if not pair[0].startswith("utm_"))
    # Crawlee sets the decoded path again, so %2F becomes a slash in its keys. Setting a path drops
    # the query and the fragment.
    clean = url.with_path(url.path.removesuffix("/"))
    return str(clean.with_query(query)).lower()


def _headers_hash(headers: Iterable[tuple[str, str]]) -> str:
    lowered = {name.strip().lower(): value.strip() for name, value in headers}
    lines = (f"{name}:{lowered[name]}" for name in sorted(_KEY_HEADERS & lowered.keys()))
    return _short_hash("|".join(lines).encode())


def _short_hash(data: bytes) -> str:
    return sha256(data).hexdigest()[:8]


# As Crawlee for JavaScript writes them, with the URL class of Node.js


def normalize_web_url(url: str) -> str:
    """Return the URL as Crawlee for JavaScript writes it in a key, or as it is if it is not one.

    The path keeps its case. Parameters are sorted by name, in their old order where it is the same.
    """
    parts = _WEB_URL.fullmatch(re.sub("[\t\n\r]", "", url.strip()))
    if parts is None:
        return url
    scheme, host, port = parts["scheme"].lower(), parts["host"], parts["port"]
    try:
        host = (host if host.isascii() else host.encode("idna").decode()).lower()
    except UnicodeError:
        return url
    if port and port != _DEFAULT_PORTS[scheme]:
        host += f":{int(port)}"
    pairs = parse_qsl(parts["query"] or "", keep_blank_values=True)
    wanted = sorted((pair for pair in pairs if not pair[0].startswith("utm_")), key=_name)
    query = "&".join(f"{_form(name)}={_form(value)}" for name, value in wanted)
    return f"{scheme}://{host}{_web_path(parts['path'] or '')}" + (f"?{query}" if query else "")


def _name(pair: tuple[str, str]) -> bytes:
    return pair[0].encode("utf-16-be")  # JavaScript compares by code units


def _form(text: str) -> str:
    return quote_plus(text, safe="*").replace("~", "%7E")


def _web_path(path: str) -> str:
    segments: list[str] = []
    for segment in path.replace("\\", "/").split("/")[1:]:
        plain = re.sub("%2e", ".", segment, flags=re.IGNORECASE)
        if plain == ".." and segments:
            segments.pop()
        if plain not in (".", ".."):
            segments.append(segment)
    joined = "".join(f"/{quote(segment, safe=_SAFE_IN_PATH)}" for segment in segments)
    return joined.removesuffix("/")
