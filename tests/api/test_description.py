"""The server against the API's OpenAPI description, by generated calls, good ones and bad ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support import api_description
from tests.support.optional import needs
from tests.support.queues import ServedQueue
from tests.support.raw_calls import BEARER, Caller, called

pytestmark = [
    needs("schemathesis"),
    pytest.mark.skipif(
        api_description.missing() is not None, reason=api_description.missing() or ""
    ),
]

KEY = "known"
OPERATIONS = [] if api_description.missing() else api_description.operations()
TEXTS = st.text(max_size=20)
REQUESTS = st.fixed_dictionaries(
    {"uniqueKey": st.text(min_size=1), "url": TEXTS},
    optional={
        "method": st.sampled_from(["GET", "POST"]),
        "payload": TEXTS,
        "headers": st.dictionaries(TEXTS, TEXTS),
        "userData": st.dictionaries(TEXTS, st.none() | st.integers() | TEXTS),
        "retryCount": st.integers(0, 9),
        "errorMessages": st.lists(TEXTS),
    },
)


def batches(path: str) -> st.SearchStrategy[list[Any]]:
    """Of one request where the call takes no more."""
    most = 25 if path.endswith("/batch") else 1
    return st.lists(
        REQUESTS, min_size=1, max_size=most, unique_by=lambda request: request["uniqueKey"]
    )


@cache
def described() -> Any:
    import schemathesis

    return schemathesis.openapi.from_path(api_description.FILE)


def prepare(remote: Caller, *, locked: bool) -> None:
    """A queue with a fresh request, which nobody has locked but the client ``me``."""
    remote.http.post("/v2/request-queues?name=fuzzed")
    remote("DELETE", f"/requests/{request_id(KEY)}")
    remote.add(KEY)
    if locked:
        remote.lock("me")


def make_good(case: Any, batch: list[Any]) -> None:
    """Let the call succeed if its parameters are good: it concerns that request, its body is
    good."""
    is_taking = case.path.endswith("/lock") and case.method != "DELETE"
    case.query = {"lockSecs": 60, "forefront": "true"} if is_taking else {}
    if "requestId" in (case.path_parameters or {}):
        case.path_parameters["requestId"] = request_id(KEY)
        case.query = {**(case.query or {}), "clientKey": "me"}
    if case.path.endswith("/batch"):
        is_new = case.method == "POST"
        case.body = batch if is_new else [{"uniqueKey": one["uniqueKey"]} for one in batch]
    elif case.path.endswith("/requests") and case.method == "POST":
        case.body = batch[0]
    elif case.path.endswith("{requestId}") and case.method == "PUT":
        case.body = {**batch[0], "uniqueKey": KEY, "id": request_id(KEY)}
    elif case.method == "PUT" and case.path.endswith("{queueId}"):
        case.body = {"title": batch[0]["url"]}


@pytest.mark.parametrize(("verb", "path"), OPERATIONS)
def test_generated_calls(served: ServedQueue, api: Caller, verb: str, path: str) -> None:
    import schemathesis
    from schemathesis.specs.openapi import checks as known

    checks = [
        schemathesis.checks.not_a_server_error,
        known.status_code_conformance,
        known.content_type_conformance,
        known.response_schema_conformance,
    ]
    operation = described()[path][verb]
    positive, negative = (
        operation.as_strategy(generation_mode=mode)
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    )
    remote = Caller(api.http, "/v2/request-queues/~fuzzed")
    statuses: set[int] = set()
    how = settings(
        max_examples=5,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    def call(case: Any) -> int:
        answer = case.call_and_validate(base_url=served.api.url, headers=BEARER, checks=checks)
        status: int = answer.status_code
        return status

    def aim(case: Any) -> None:
        # A made-up queue or request is never there: calls go to real ones.
        if "queueId" in case.path_parameters:
            prepare(remote, locked=path.endswith("{requestId}/lock"))
            case.path_parameters["queueId"] = "~fuzzed"

    @how
    @given(case=positive, batch=batches(path))
    def good(case: Any, batch: list[Any]) -> None:
        aim(case)
        make_good(case, batch)
        statuses.add(call(case))

    @how
    @given(case=positive | negative)
    def any_kind(case: Any) -> None:
        aim(case)
        call(case)

    good()
    # The description leaves out some limits, so that even of these some may be refused.
    assert any(status < 300 for status in statuses), statuses
    any_kind()


WRONG_CALLS = [
    ("GET", "?limit=some", None),
    ("GET", "/~q/head?nonsense=1", None),
    ("POST", "/~q/head/lock", None),
    ("POST", "/~q/requests?forefront=1", b'{"uniqueKey": "a"}'),
    ("POST", "/~q/requests", b'{"uniqueKey": "a", "url": "a", "id": "a"}'),
    ("DELETE", "/~q/requests/batch", b"[]"),
    ("GET", "/~q/nothing", None),
]


@pytest.mark.parametrize(
    ("agent", "expected"), [("scrapy-apify-rq/0", len(WRONG_CALLS)), ("others may/0", 0)]
)
def test_wrong_call_of_ours_would_be_seen(served: ServedQueue, agent: str, expected: int) -> None:
    """The check itself, which every test with ``served`` relies on."""
    headers = {"User-Agent": agent, "Content-Type": "application/json", **BEARER}
    with called(served, headers=headers) as api:
        for verb, path, body in WRONG_CALLS:
            api.http.request(verb, f"{api.path}{path}", content=body)
    complaints = served.api.complaints.copy()
    served.api.complaints.clear()
    assert [": the call: " in complaint for complaint in complaints] == [True] * expected


def test_wrong_answer_of_ours_would_be_seen() -> None:
    path = "/v2/request-queues/abc"
    head = {"limit": 1, "queueModifiedAt": "yesterday", "hadMultipleClients": False, "items": []}
    items = [{"id": "a", "uniqueKey": "a", "url": "a", "retryCount": n} for n in (0, "1")]
    check = api_description.description().check
    check("POST", f"{path}/requests/unlock", 200, {"data": {"unlockedCount": 1}})
    for verb, where, status, data, complaint in (
        ("POST", "/requests/unlock", 200, {}, "unlockedCount"),
        ("POST", "/requests/unlock", 418, {}, "may not answer 418"),
        ("GET", "/head", 200, head, "date-time"),
        ("GET", "/requests", 200, {"items": items, "limit": 2}, "integer"),
    ):
        with pytest.raises((AssertionError, ValueError), match=complaint):
            check(verb, path + where, status, {"data": data})
