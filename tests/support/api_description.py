"""Holds calls and answers against the API's OpenAPI description, where that is at hand.

The description lies beside the repository and is not part of it. Every server of these tests is
held to it (``checking``), and so is every call of ours. Calls of other clients are not: they may be
wrong on purpose, and show it by their User-Agent.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

FILE = Path(__file__).parents[3] / "shared" / "api" / "openapi-rq.json"
OURS = "scrapy-apify-rq/"


def missing() -> str | None:
    """Why nothing can be checked."""
    if not FILE.is_file():
        return f"{FILE} is not there"
    return None if find_spec("jsonschema_rs") else "the package jsonschema-rs is not installed"


@cache
def _raw() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


def operations() -> list[tuple[str, str]]:
    """The verb and path of each."""
    paths = _raw()["paths"].items()
    return sorted((verb.upper(), path) for path, found in paths for verb in found)


class Description:
    def __init__(self) -> None:
        raw = _raw()
        self._components = raw["components"]
        self.operations = {
            (verb.upper(), path): _Operation(self, operation)
            for path, operations in raw["paths"].items()
            for verb, operation in operations.items()
        }
        # Fixed parts win: requests/batch is no request.
        paths = sorted(raw["paths"], key=lambda path: str(path).count("{"))
        self._paths = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), path) for path in paths]

    def resolved(self, raw: Any, kind: str) -> Any:
        return self._components[kind][raw["$ref"].split("/")[-1]] if "$ref" in raw else raw

    def checker(self, body: Any) -> Any:
        """What checks it; None if there is none."""
        from jsonschema_rs import Draft202012Validator

        if not body:
            return None
        schema = body.get("content", {}).get("application/json", body)["schema"]
        return Draft202012Validator(
            {**schema, "components": self._components}, validate_formats=True
        )

    def _operation(self, verb: str, path: str) -> _Operation | None:
        found = next((name for form, name in self._paths if form.fullmatch(path)), path)
        return self.operations.get((verb, found))

    def check(self, verb: str, path: str, status: int, body: Any) -> None:
        """Raise unless the operation may answer so; paths without an operation may do anything."""
        operation = self._operation(verb, path)
        if operation is None or status >= 500:  # every operation may fail
            return
        assert str(status) in operation.answers, f"{verb} {path} may not answer {status}"
        if (checker := operation.answers[str(status)]) is None:
            assert body is None, f"{verb} {path} has no body with {status}"
        else:
            checker.validate(body)

    def check_call(
        self, verb: str, path: str, query: Sequence[tuple[str, str]], kind: str, body: bytes
    ) -> None:
        """Raise unless the API describes such a call; ``kind`` is its Content-Type."""
        operation = self._operation(verb, path)
        assert operation is not None, f"there is no {verb} {path}"
        names = [name for name, _ in query]
        assert len(names) == len(set(names)), f"a parameter twice: {names}"
        assert operation.required <= set(names), f"missing: {operation.required - set(names)}"
        for name, text in query:
            if name != "token":  # every operation takes it
                assert name in operation.parameters, f"{verb} {path} has no parameter {name}"
                type_, checker = operation.parameters[name]
                checker.validate(_value(text, type_))
        if operation.body is None:
            assert not body, f"{verb} {path} takes no body"
            return
        assert kind == "application/json", f"Content-Type {kind}"
        content = json.loads(body)
        operation.body.validate(content)
        # What the description says in words.
        if path.endswith("/batch"):
            assert 1 <= len(content) <= 25, f"a batch of {len(content)}"
        for request in content if isinstance(content, list) else [content]:
            assert verb != "POST" or "id" not in request, "a new request with an id"


class _Operation:
    """What checks its calls, and its answers by status."""

    def __init__(self, description: Description, raw: Any) -> None:
        parameters = [description.resolved(one, "parameters") for one in raw["parameters"]]
        query = [one for one in parameters if one["in"] == "query"]
        self.required = {one["name"] for one in query if one.get("required")}
        self.parameters = {
            one["name"]: (one["schema"].get("type"), description.checker(one)) for one in query
        }
        self.body = description.checker(raw.get("requestBody"))
        self.answers = {}
        for status, answer in raw["responses"].items():
            resolved = description.resolved(answer, "responses")
            self.answers[status] = description.checker("content" in resolved and resolved)


def _value(text: str, kind: object) -> Any:
    """A parameter as what its schema says it is."""
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    if kind in ("number", "integer"):
        is_number = re.fullmatch(r"-?\d+(\.\d+)?", text)
        return json.loads(text) if is_number else text
    return text.split(",") if kind == "array" else text


description = cache(Description)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def checking(report: Callable[[str], object]) -> list[Any]:
    """The middleware that reports what breaks the description, if it is at hand."""
    return [_checking(description(), report)] if missing() is None else []


def _checking(description: Description, report: Callable[[str], object]) -> Any:
    def hold(request: web.Request, what: str, check: Callable[..., None], *given: Any) -> None:
        try:
            check(*given)
        except Exception as error:
            where = f"{request.method} {request.rel_url.human_repr()}"
            report(f"{where}: {what}: {error}"[:2000])

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not request.path.startswith("/v2/request-queues"):  # the description has no others
            return await handler(request)
        call = (request.method, request.path)
        if request.headers.get(hdrs.USER_AGENT, "").startswith(OURS):
            body = await request.read()
            if request.headers.get(hdrs.CONTENT_ENCODING) == "gzip":
                body = gzip.decompress(body)
            query = list(request.query.items())
            kind = request.content_type
            hold(request, "the call", description.check_call, *call, query, kind, body)
        answer = await handler(request)
        # Else it was to be lost.
        if request.transport is not None and not request.transport.is_closing():
            assert isinstance(answer, web.Response)
            verb = request.query.get("method", "GET") if call[0] == "GET" else call[0]
            try:
                body = json.loads(answer.text) if answer.text else None
            except RecursionError:
                return answer  # a test has put something into the file that Python cannot read
            hold(request, "the answer", description.check, verb, call[1], answer.status, body)
        return answer

    return check
