"""Any JSON value in any field of a completion's body: an answer or a refusal of the request, and never a 5xx."""

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster import Cluster
from tests.unit.test_openapi_bodies import CASES, OWN, SCHEMAS, VALUES

MODEL = "sim/plain"
PATHS = {"ChatRequest": "/chat/completions", "CompletionRequest": "/completions", "EmbeddingRequest": "/embeddings"}
EXAMPLES_MOST = 1000
FIELDS_MOST = 3  # at once: of more, one is nearly always refused


@pytest.fixture
async def client(cluster: Cluster) -> Any:
    await cluster.add_model(MODEL, tokens=4)
    cluster.start("api0", "api")
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready()
    _, key = await cluster.add_account("1000000")
    with httpx.Client(base_url=cluster.base_url(), headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        yield client


async def test_no_value_of_any_field_is_a_5xx(client: httpx.Client) -> None:
    statuses: dict[str, set[int]] = {}

    @settings(max_examples=EXAMPLES_MOST, derandomize=True, deadline=None, database=None)
    @given(st.sampled_from(sorted(CASES)).flatmap(lambda name: st.tuples(st.just(name), _bodies(name))))
    def check(case: tuple[str, dict[str, Any]]) -> None:
        name, body = case
        answer = client.post(
            PATHS[name], content=msgspec.json.encode(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.status_code != 200 or '"error"' not in answer.text, answer.text
        statuses.setdefault(name, set()).add(answer.status_code)

    check()

    assert {name: found >= {200, 400} for name, found in statuses.items()} == dict.fromkeys(CASES, True)


def _bodies(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies that are valid but for some fields, which hold anything."""
    base = CASES[name][0] | {"model": MODEL}
    fields = st.lists(st.sampled_from(sorted(SCHEMAS[name]["properties"])), max_size=FIELDS_MOST, unique=True)
    return fields.flatmap(lambda names: st.fixed_dictionaries({one: _values(one) for one in names})).map(
        lambda given_fields: base | given_fields
    )


def _values(field: str) -> st.SearchStrategy[Any]:
    return OWN[field] | VALUES if field in OWN else VALUES
