"""What is served of the documentation: one document, a page that loads nothing of anybody else, files kept for ever."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.integration.api_edge import Edge, open_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge() as edge:
        yield edge


async def test_the_document_is_served_to_everybody(edge: Edge) -> None:
    answer = await _get(edge, "/openapi.json")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["openapi"] == "3.1.0"
    assert "/api/v1/inference/chat/completions" in answer.json()["paths"]


async def test_the_document_is_the_same_beside_the_page(edge: Edge) -> None:
    first, second = await _get(edge, "/openapi.json"), await _get(edge, "/docs/openapi.json")

    assert first.content == second.content


async def test_the_page_loads_our_own_files_only_and_says_so(edge: Edge) -> None:
    page = await _get(edge, "/docs")

    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    assert re.findall(r"<script>|\son\w+=|https?://", page.text) == []
    assert len(_files(page.text)) == 3


async def test_the_page_of_a_trailing_slash_is_the_same(edge: Edge) -> None:
    assert (await _get(edge, "/docs/")).text == (await _get(edge, "/docs")).text


async def test_every_file_of_the_page_is_there_and_may_be_kept_for_ever(edge: Edge) -> None:
    for url in _files((await _get(edge, "/docs")).text):
        answer = await _get(edge, url)

        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].startswith(("text/css", "text/javascript"))


@pytest.mark.parametrize(
    "path", ["/docs/unknown", "/docs/unknown.json", "/docs/assets/0/start.js", "/docs/assets/../start.js", "/schema"]
)
async def test_what_is_not_there_is_refused_in_the_one_shape(edge: Edge, path: str) -> None:
    answer = await _get(edge, path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_the_page_cannot_be_posted_to(edge: Edge) -> None:
    answer = await edge.client.post(f"http://127.0.0.1:{edge.port}/docs")

    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


def _files(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(/[^"]+)"', page)


async def _get(edge: Edge, path: str) -> httpx.Response:
    return await edge.client.get(f"http://127.0.0.1:{edge.port}{path}", headers={"authorization": ""})
