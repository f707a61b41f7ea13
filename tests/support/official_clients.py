"""Apify's own clients behind one face: names as the one for Python has them, answers as JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_BRIDGE = Path(__file__).with_name("official") / "bridge.mjs"


class ClientError(Exception):
    """The client raised an error of the API: its status and type."""


class Target:
    """The request queues in general, or one of them. Its methods are the client's."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __getattr__(self, method: str) -> Any:
        return partial(self._call, method)


class PythonClient:
    """``kind`` is the name of the class."""

    def __init__(self, kind: str, url: str, token: str, **options: Any) -> None:
        import apify_client

        self._api_error = apify_client.errors.ApifyApiError
        soon = timedelta(milliseconds=5)
        make = getattr(apify_client, kind)
        self._client = make(token, api_url=url, min_delay_between_retries=soon, **options)

    def queues(self) -> Target:
        return Target(partial(self._call, self._client.request_queues()))

    def queue(self, id: str, client_key: str | None = None) -> Target:
        return Target(partial(self._call, self._client.request_queue(id, client_key=client_key)))

    async def _call(self, target: Any, method: str, *args: Any, **options: Any) -> Any:
        try:
            found = getattr(target, method)(*args, **options)
            if inspect.isawaitable(found):
                found = await found
            elif hasattr(found, "__aiter__"):
                found = [one async for one in found]
            elif isinstance(found, Iterator):
                found = list(found)
        except self._api_error as error:
            raise ClientError(error.status_code, error.type) from error
        return _plain(found)


def _plain(found: Any) -> Any:
    if isinstance(found, list):
        return [_plain(one) for one in found]
    return found.model_dump(mode="json", by_alias=True) if isinstance(found, BaseModel) else found


class JavaScript:
    """A process of node, for the clients of many tests, until the ``with`` block ends."""

    def __init__(self, packages: Path) -> None:
        command = ["node", str(_BRIDGE), str(packages)]
        self._node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> JavaScript:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.kill()
        self._node.communicate()

    async def call(self, **call: Any) -> Any:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps(call).encode() + b"\n")
        self._node.stdin.flush()
        line = await asyncio.to_thread(self._node.stdout.readline)
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(*answer["error"][:2]) from Exception(answer["error"])
        return answer.get("value")


class JavaScriptClient:
    def __init__(self, node: JavaScript, url: str, token: str) -> None:
        self._call_node = partial(node.call, baseUrl=url, token=token)

    def queues(self) -> Target:
        return Target(partial(self._call, None, None))

    def queue(self, id: str, client_key: str | None = None) -> Target:
        return Target(partial(self._call, id, client_key))

    async def _call(
        self, queue: str | None, key: str | None, method: str, *args: Any, **options: Any
    ) -> Any:
        if "lock_duration" in options:
            options["lock_secs"] = options.pop("lock_duration").total_seconds()
        if "chunk_size" in options and queue:
            options["max_page_limit"] = options.pop("chunk_size")
        named = [options["name"]] if method == "get_or_create" and options else None
        given = [{_camel(name): value for name, value in options.items()}] if options else []
        names = {"iterate": "list", "iterate_requests": "paginateRequests"}
        return await self._call_node(
            queue=queue,
            clientKey=key,
            method=names.get(method, _camel(method)),
            args=named or [*args, *given],
            iterates=method in names,
        )


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))
