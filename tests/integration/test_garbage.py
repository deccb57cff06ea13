"""An ended request leaves nothing to the garbage collector, on either side of the queue."""

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.client import Client
from api.exchange import Exchange
from shared.connections import Redis
from shared.queue.claims import Claim
from tests.garbage import alive, uncollected
from tests.integration.api_edge import open_edge
from tests.integration.queue_rig import MODEL, open_rig, open_worker, until

ROUNDS = 5


async def test_an_api_node_frees_an_answered_request_at_once() -> None:
    async with open_edge() as edge:
        with uncollected():
            for stream in (False, True) * ROUNDS:
                assert (await edge.complete(stream=stream)).status_code == 200

            # A connection keeps its last cycle until the next request.
            assert alive(RequestResponseCycle, Exchange, Client) in ({}, {"RequestResponseCycle": 1})


async def test_a_worker_frees_an_ended_claim_at_once(redis: Redis) -> None:
    heard: list[str] = []

    async def run(claim: Claim) -> None:
        def interrupt(_: str) -> None:
            claim.cancel.set("request_cancelled")  # as a run does: its callback reaches the token that holds it

        claim.cancel.on_cancel(interrupt)
        heard.append(claim.job.request_id)

    async with open_rig(redis) as rig, open_worker(redis, run) as worker:
        with uncollected():
            for _ in range(ROUNDS):
                await rig.enqueue()
            await until(lambda: len(heard) == ROUNDS and worker.running(MODEL) == 0)

            assert alive(Claim) == {}
