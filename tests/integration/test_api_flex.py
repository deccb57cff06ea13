"""`service_tier`: which lane a completion is submitted to, how long it may wait there, and what its client is told."""

from collections.abc import AsyncIterator

import pytest

from api.idempotency import idempotency_of
from shared.openai.decode import decode_chat
from tests.integration.api_edge import Edge, body, events, open_edge

DAY_SECONDS = 86_400


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with open_edge(ping_seconds=0.05, status_hold_seconds=0.05) as edge:
        yield edge


async def _wait(edge: Edge, seconds: str, **fields: object) -> int:
    answer = await edge.post(body(**fields), inferbase_wait=seconds)
    return answer.status_code


async def test_flex_is_the_batch_lane_and_outlives_its_client(edge: Edge) -> None:
    await edge.complete(service_tier="flex")

    (submission,) = edge.dispatcher.submissions
    assert (submission.lane, submission.resumable) == ("batch", True)


@pytest.mark.parametrize("tier", [..., None, "auto", "default"])
async def test_every_other_tier_is_the_interactive_lane(edge: Edge, tier: object) -> None:
    await edge.complete(service_tier=tier)

    (submission,) = edge.dispatcher.submissions
    assert (submission.lane, submission.resumable) == ("interactive", False)


@pytest.mark.parametrize(("tier", "told"), [("auto", "default"), ("default", "default"), ("flex", "flex")])
async def test_an_answer_names_the_tier_that_it_had(edge: Edge, tier: str, told: str) -> None:
    whole = (await edge.complete(service_tier=tier)).json()
    *streamed, _ = events((await edge.complete(service_tier=tier, stream=True)).text)

    assert whole["service_tier"] == told
    assert {event["service_tier"] for event in streamed} == {told}


async def test_who_named_no_tier_is_told_none(edge: Edge) -> None:
    whole = (await edge.complete()).json()
    *streamed, _ = events((await edge.complete(stream=True)).text)

    assert all("service_tier" not in each for each in (whole, *streamed))


async def test_flex_may_wait_a_day_and_no_longer(edge: Edge) -> None:
    assert await _wait(edge, str(DAY_SECONDS), service_tier="flex") == 200
    assert await _wait(edge, str(DAY_SECONDS + 1), service_tier="flex") == 400
    assert edge.dispatcher.submissions[0].patience_seconds == DAY_SECONDS


async def test_an_interactive_request_may_not_wait_as_long_as_flex(edge: Edge) -> None:
    assert await _wait(edge, "600") == 200
    assert await _wait(edge, "601") == 400


async def test_flex_without_a_header_waits_as_long_as_a_connection_lasts(edge: Edge) -> None:
    await edge.complete(service_tier="flex")
    await edge.complete(service_tier="flex", stream=True)

    whole, stream = edge.dispatcher.submissions
    settings = edge.node.settings.api
    assert (whole.patience_seconds, stream.patience_seconds) == (
        settings.fold_patience_seconds,
        settings.patience_seconds_most,
    )


@pytest.mark.parametrize("tier", ["priority", "scale", "batch", "", 1])
async def test_an_unknown_tier_is_400(edge: Edge, tier: object) -> None:
    answer = await edge.complete(service_tier=tier)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "service_tier")


async def test_the_weight_of_the_account_goes_with_the_request(edge: Edge) -> None:
    token = edge.keys.add(weight=5, key_id="key_heavy")

    await edge.post(body(), authorization=f"Bearer {token}")

    assert edge.dispatcher.submissions[0].weight == 5


def test_an_idempotency_key_covers_the_lane_but_not_the_words_for_the_usual_one() -> None:
    def digest(**fields: object) -> bytes:
        found = idempotency_of({b"idempotency-key": b"k"}, decode_chat(body(**fields)))
        assert found is not None
        return found.body_hash

    assert digest() == digest(service_tier="auto") == digest(service_tier="default")
    assert digest() != digest(service_tier="flex")
