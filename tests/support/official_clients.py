"""Apify's own clients behind one face: names as the one for Python has them, answers as JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

# How each of the clients packs what it sends.
COMPRESSION = {"ApifyClient": "br", "ApifyClientAsync": "gzip", "JavaScript": "br"}
_BRIDGE = Path(__file__).with_name("official") / "bridge.mjs"


class ClientError(Exception):
    """The client raised an error of the API: its status and type."""


class Target:
    """What one of the client's own objects is for. Its methods are the client's."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __getattr__(self, method: str) -> Any:
        return partial(self._call, method)


# The methods that lead to the object, each with its arguments, the last of which may be options.
Steps = Sequence[Sequence[Any]]


class Client:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def of(self, *path: Sequence[Any]) -> Target:
        return Target(partial(self._call, path))

    def queues(self) -> Target:
        return self.of(["request_queues"])

    def queue(self, id: str, key: str | None = None) -> Target:
        return self.of(["request_queue", id, {"client_key": key} if key else {}])


def python_client(kind: str, url: str, token: str, **options: Any) -> Client:
    """``kind`` is the name of the class."""
    import apify_client

    soon = timedelta(milliseconds=5)
    make = getattr(apify_client, kind)
    client = make(token, api_url=url, min_delay_between_retries=soon, **options)

    async def call(path: Steps, method: str, *args: Any, **named: Any) -> Any:
        target = client
        for step, *given in path:
            options = given.pop() if given and isinstance(given[-1], dict) else {}
            target = getattr(target, step)(*given, **options)
        try:
            found = getattr(target, method)(*args, **named)
            if inspect.isawaitable(found):
                found = await found
            elif hasattr(found, "__aiter__"):
                found = [one async for one in found]
        except apify_client.errors.ApifyApiError as error:
            raise ClientError(error.status_code, error.type) from error
        return _plain(found)

    return Client(call)


def _plain(found: Any) -> Any:
    if isinstance(found, list | Iterator):
        return [_plain(one) for one in found]
    if is_dataclass(found):
        return vars(found)
    return found.model_dump(mode="json", by_alias=True) if isinstance(found, BaseModel) else found


class Node:
    """A process of node, for the clients of many tests, until the ``with`` block ends."""

    def __init__(self, packages: Path) -> None:
        command = ["node", str(_BRIDGE), str(packages)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    async def call(self, **call: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(await asyncio.to_thread(self._process.stdout.readline))
        if "error" in answer:
            raise ClientError(*answer["error"][:2]) from Exception(answer["error"])
        return answer.get("value")


def javascript_client(node: Node, url: str, token: str) -> Client:
    names = {
        "iterate": "list",
        "iterate_requests": "paginateRequests",
        "iterate_items": "listItems",
        "iterate_keys": "listKeys",
    }

    async def call(path: Steps, method: str, *args: Any, **named: Any) -> Any:
        if "lock_duration" in named:
            named["lock_secs"] = named.pop("lock_duration").total_seconds()
        if "chunk_size" in named:
            named["max_page_limit"] = named.pop("chunk_size")
        given = [_camel_names(named)] if named else []
        return await node.call(
            baseUrl=url,
            token=token,
            path=[[_camel(step), *map(_camel_names, given)] for step, *given in path],
            method=names.get(method, _camel(method)),
            args=list(named.values()) if method == "get_or_create" else [*args, *given],
            iterates=method in names,
        )

    return Client(call)


def _camel_names(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    return {_camel(name): value for name, value in given.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))
