"""Tagged JSON: keeps the Python types of what a request carries in ``meta`` and ``cb_kwargs``.

A value that JSON can hold is written as it is. Any other is an object whose only key begins with
"$":

    $tuple $set $frozenset   [element, ...]; those of sets in a fixed order
    $bytes $bytearray $str   base64; $str is UTF-8 with surrogates, for a str with lone surrogates
    $int $float              text: what JavaScript would change, since others may write the entry
                             again. Beyond +-2**53; whole numbers (10.0, -0.0), nan, inf, -inf
    $complex                 [real, imaginary]
    $decimal $uuid $date     text
    $datetime $time          ISO text, or [ISO text, fold, zone]. A zone is null, a ZoneInfo key,
                             for a datetime.timezone [microseconds] or [microseconds, name], and
                             for one of pydantic {"pydantic": seconds}
    $timedelta               [days, seconds, microseconds]
    $dict                    [[key, value], ...]: for keys that JSON lacks, and where the only key
                             begins with "$"
    $ordereddict $counter    the same
    $defaultdict             [factory, pairs]
    $deque                   [elements, maxlen]
    $range                   [start, stop, step]
    $pattern                 [pattern, flags]
    $path                    ["Path", "PurePosixPath" or "PureWindowsPath", text]
    $url                     [class path, text], for the URL types of pydantic
    $enum                    [class path, name of the member], or its number for several flags
    $namedtuple              [class path, elements]
    $item                    [class path, [[field, value], ...]], and a third list for fields that
                             are set after construction (init=False, defaults of pydantic)
    $object                  [class path, [[attribute, value], ...]], and a third value for a
                             subclass of a built-in type (``BASES``)
    $class $function         path
    $method                  the name of a method of the spider
    $request                 [url, method, payload, headers, blob] as in ``converter``

``names`` says which classes and functions can be written: the same that can be read.

Limits: lxml's text, a str that knows its element, comes back as a plain str, because CrawlSpider
keeps the text of every link in meta; scalars of numpy come back as numbers and texts of Python. An
item is restored by its constructor, and written as an object or refused if not all of its state
comes back; to find out, we read it back. An object whose class has ``__reduce__`` or ``__del__`` is
refused: it is more than its attributes. An object that occurs twice comes back as two objects. JSON
of more than about 100 levels is refused. A JavaScript program that writes an entry again puts keys
that are whole numbers first in a dict.

``builtin_values`` and ``objects`` write; ``value_reader`` reads.
"""

from __future__ import annotations

from pydantic import JsonValue

from scrapy_apify_rq.entries.builtin_values import MAX_PARTS, NATIVE, is_unicode, write
from scrapy_apify_rq.entries.names import NOTHING, Names
from scrapy_apify_rq.entries.objects import write_other
from scrapy_apify_rq.entries.place import Place, Writer

__all__ = ["encode", "is_unicode"]


def encode(value: object, where: str = "value", names: Names = NOTHING) -> JsonValue:
    """Return ``value`` as JSON data that shares nothing with it.

    Raises CodecError if a part would not come back the same; ``where`` begins the path to it.
    """
    root = Place(None, where, 0, Writer(names, write_other, is_checked=True, left=[MAX_PARTS]))
    try:
        fits = NATIVE.get(type(value))
        return value if fits and fits(value) else write(value, root)  # type: ignore[return-value]
    except RecursionError:
        raise root.refusal("nested too deeply") from None
