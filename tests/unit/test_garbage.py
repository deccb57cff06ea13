"""What a run held is freed when it ends, without the collector."""

from shared.queue.claims import CancelToken
from tests.contract.engines import collect, opened, prompt, sampling
from tests.garbage import alive, uncollected
from workers.engines.delta_queue import DeltaQueue
from workers.engines.simulator import SimulatedRun


def test_a_token_that_forgot_calls_nobody() -> None:
    token, heard = CancelToken(), []
    token.on_cancel(heard.append)

    token.forget()
    token.set("request_cancelled")

    assert token.code == "request_cancelled"
    assert heard == []


async def test_an_engine_frees_an_ended_request_at_once() -> None:
    async with opened("simulator", tokens="5") as engine:
        with uncollected():
            for number in range(3):
                await collect(engine.generate(f"{number}", prompt(engine), sampling(100)))

            last = {"DeltaQueue": 1, "SimulatedRun": 1}  # the loop that steps still names it
            assert alive(DeltaQueue, SimulatedRun) in ({}, last)
