"""The catalogue for everybody: ids hold slashes, raw or escaped, and no credentials are asked for."""

from collections.abc import AsyncIterator

import pytest

from shared.presence import Health
from tests.integration.api_edge import MODEL, Edge, open_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge() as edge:
        yield edge


@pytest.mark.parametrize("header", [None, "Bearer inf_wrong", "Basic x"])
async def test_models_are_listed_without_credentials(edge: Edge, header: str | None) -> None:
    edge.client.headers.pop("authorization")

    response = await edge.client.get("/models", headers={"authorization": header} if header else {})

    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [{"id": "Org/sim-1", "object": "model", "created": 1700000000, "owned_by": "inferbase"}],
        "first_id": "Org/sim-1",
        "last_id": "Org/sim-1",
        "has_more": False,
    }
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/models/Org/sim-1", "/models/Org%2Fsim-1", "/models/Org%2fsim-1"])
async def test_a_model_is_found_by_its_raw_and_its_escaped_id(edge: Edge, path: str) -> None:
    response = await edge.client.get(path)

    assert response.status_code == 200
    assert response.json()["id"] == MODEL.id


@pytest.mark.parametrize("path", ["/models/Org/sim-1/health", "/models/Org%2Fsim-1/health"])
async def test_health_is_found_behind_an_id_with_a_slash(
    edge: Edge, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loading(model: str) -> Health:
        return Health(model=model, status="loading", eta_seconds=9, queue_depth=2, workers=1)

    monkeypatch.setattr(edge.node, "health", loading)

    response = await edge.client.get(path)

    assert response.status_code == 200
    assert response.json() == {
        "model": "Org/sim-1",
        "status": "loading",
        "eta_seconds": 9,
        "queue_depth": 2,
        "workers": 1,
    }


@pytest.mark.parametrize("path", ["/models/nope", "/models/nope/health", "/models/Org", "/models/Org/sim-1/x"])
async def test_an_unknown_model_is_404(edge: Edge, path: str) -> None:
    response = await edge.client.get(path)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/nope", "/", "/chat", "/keys/a/b"])
async def test_an_unknown_path_is_404_in_our_shape(edge: Edge, path: str) -> None:
    response = await edge.client.get(path)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_a_wrong_method_is_405_in_our_shape(edge: Edge) -> None:
    response = await edge.client.post("/models")

    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize("path", ["/credits", "/credits/transactions", "/usage", "/keys"])
async def test_the_account_is_told_to_nobody_without_a_key(edge: Edge, path: str) -> None:
    edge.client.headers.pop("authorization")

    response = await edge.client.get(path)

    assert response.status_code == 401
    assert response.json()["error"]["code"] == "missing_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_readiness_ends_when_the_node_is_told_to_stop(edge: Edge) -> None:
    url = f"http://127.0.0.1:{edge.port}"
    ready = await edge.client.get(url + "/readyz")

    edge.node.ready = False

    assert ready.status_code == 200
    assert (await edge.client.get(url + "/readyz")).status_code == 503
    assert (await edge.client.get(url + "/livez")).status_code == 200
