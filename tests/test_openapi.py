"""The server against the API's OpenAPI description, by generated calls, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.server import Server, serve
from tests.support import api_description as description

schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.skipif(
    description.missing() is not None, reason=description.missing() or ""
)
QUEUE = "fuzzed"
KEY = "known"
EXAMPLES = 20
TOKEN = {"Authorization": "Bearer secret"}
OPERATIONS = [] if description.missing() else sorted(description.Description().operations)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), "--token", "secret") as server:
        yield server


@pytest.fixture(scope="module")
def schema() -> Any:
    return schemathesis.openapi.from_path(description.FILE)


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v2", headers=TOKEN) as http:
        yield http


def prepare(http: httpx.Client, *, locked: bool) -> None:
    """A queue with a fresh request, which nobody has locked but the client ``me``."""
    http.post("/request-queues", params={"name": QUEUE})
    queue = f"/request-queues/~{QUEUE}"
    http.delete(f"{queue}/requests/{request_id(KEY)}")
    http.post(f"{queue}/requests", json={"uniqueKey": KEY, "url": "x"})
    if locked:
        http.post(f"{queue}/head/lock", params={"lockSecs": 600, "clientKey": "me"})


def make_known(case: Any) -> None:
    """Let the call concern that request, what else it has being as generated, or lock it."""
    if "lockSecs" in (case.query or {}):
        case.query["lockSecs"] = 60
    if "requestId" not in (case.path_parameters or {}):
        return
    case.path_parameters["requestId"] = request_id(KEY)
    case.query = {**(case.query or {}), "clientKey": "me"}
    if isinstance(case.body, dict):
        case.body["uniqueKey"] = KEY


@pytest.mark.parametrize(("verb", "path"), OPERATIONS)
def test_generated_calls(
    server: Server, http: httpx.Client, schema: Any, verb: str, path: str
) -> None:
    from schemathesis.specs.openapi import checks as described

    checks = [
        schemathesis.checks.not_a_server_error,
        described.status_code_conformance,
        described.content_type_conformance,
        described.response_schema_conformance,
    ]
    operation = schema[path][verb]
    every = schemathesis.GenerationMode
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in every))
    statuses: set[int] = set()

    @given(case=cases, known=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any, known: bool) -> None:
        # A made-up queue or request is never there: most calls go to real ones.
        if "queueId" in case.path_parameters:
            prepare(http, locked=path.endswith("{requestId}/lock"))
            case.path_parameters["queueId"] = f"~{QUEUE}"
        if known:
            make_known(case)
        answer = case.call_and_validate(base_url=server.url, headers=TOKEN, checks=checks)
        statuses.add(answer.status_code)

    run()
    assert any(status < 300 for status in statuses), statuses


WRONG_CALLS = [
    ("GET", "?limit=some", None),
    ("GET", "/~q/head?nonsense=1", None),
    ("POST", "/~q/head/lock", None),
    ("POST", "/~q/requests?forefront=1", b'{"uniqueKey": "a"}'),
    ("POST", "/~q/requests", b'{"uniqueKey": "a", "url": "a", "id": "a"}'),
    ("DELETE", "/~q/requests/batch", b"[]"),
    ("GET", "/~q/nothing", None),
]


def test_a_wrong_call_of_ours_would_be_seen(tmp_path: Path) -> None:
    """The check itself, which every test with ``serve`` relies on."""
    for agent, complaints in (("scrapy-apify-rq/0", len(WRONG_CALLS)), ("others may/0", 0)):
        seen = ""
        try:
            with serve(tmp_path) as server:
                headers = {"User-Agent": agent, "Content-Type": "application/json"}
                for verb, path, body in WRONG_CALLS:
                    url = f"{server.url}/v2/request-queues{path}"
                    httpx.request(verb, url, content=body, headers=headers)
        except AssertionError as error:
            seen = str(error)
        assert seen.count(": the call: ") == complaints, seen


def test_a_wrong_answer_of_ours_would_be_seen() -> None:
    checked = description.Description()
    path = "/v2/request-queues/abc/requests/unlock"
    checked.check("POST", path, 200, {"data": {"unlockedCount": 1}})
    with pytest.raises(Exception, match="unlockedCount"):
        checked.check("POST", path, 200, {"data": {}})
    with pytest.raises(AssertionError, match="may not answer 418"):
        checked.check("POST", path, 418, {})
    head = {"limit": 1, "queueModifiedAt": "yesterday", "hadMultipleClients": False, "items": []}
    with pytest.raises(Exception, match="date-time"):
        checked.check("GET", "/v2/request-queues/abc/head", 200, {"data": head})
    requests = [{"id": "a", "uniqueKey": "a", "url": "a", "retryCount": n} for n in (0, "1")]
    with pytest.raises(Exception, match="integer"):
        checked.check(
            "GET",
            "/v2/request-queues/abc/requests",
            200,
            {"data": {"items": requests, "limit": 2}},
        )
