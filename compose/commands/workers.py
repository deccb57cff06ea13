"""`inferbase workers …`: what the workers say of themselves, and how to send one away."""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed

if TYPE_CHECKING:
    from shared.presence import ModelPresence, Presence

PROGRESS_MOST: Final = 0.99  # of a load that takes longer than the last one
SEEN_SECONDS_MOST: Final = 5.0  # until a worker that was told to drain says that it does

app = noun("workers", "Inference workers: who serves which model, and sending one away.")


@app.command("list")
def list_(as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """List the workers that live, one line for each of their models.

    State: cold (can load it), loading, ready, or draining (takes no more requests).
    """
    from shared.presence import read_all, read_load_times

    async def work(target: Target) -> list[dict[str, Any]]:
        load_times = await read_load_times(target.redis)
        return [row for presence in await read_all(target.redis) for row in _rows(presence, load_times)]

    print_list(with_target(data_dir, work), as_json)


@app.command()
def drain(
    worker: Annotated[
        str, typer.Argument(metavar="WORKER", help="Id of the worker (own_…), see `workers list`.", show_default=False)
    ],
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Send a worker away: it takes no more requests, finishes or hands over what it runs, and ends."""
    from shared.presence import order_to_drain

    async def work(target: Target) -> dict[str, Any]:
        if worker not in await _states(target):
            raise CommandFailed(f"there is no worker {worker}")
        if not await order_to_drain(target.redis, worker):
            raise CommandFailed(f"the worker {worker} does not listen: try again, or end its process by SIGTERM")
        deadline = time.monotonic() + SEEN_SECONDS_MOST
        while time.monotonic() < deadline:
            state = (await _states(target)).get(worker, {"gone"})
            if state <= {"draining", "gone"}:  # one that could load a model (cold) still takes requests
                return {"worker": worker, "state": "gone" if state == {"gone"} else "draining"}
            await asyncio.sleep(0.1)
        raise CommandFailed(f"the worker {worker} was told to drain and does not say that it does")

    print_one(with_target(data_dir, work), as_json)


async def _states(target: Target) -> dict[str, set[str]]:
    from shared.presence import read_all

    return {said.owner: {one.state for one in said.models.values()} for said in await read_all(target.redis)}


def _rows(presence: "Presence", load_times: Mapping[str, float]) -> list[dict[str, Any]]:
    about = {"worker": presence.owner, "engine": presence.engine}
    if not presence.models:
        nothing = {"slots": 0, "slots_free": 0, "load_seconds": None, "load_progress": None}
        return [{**about, "model": None, "state": "empty", **nothing}]
    return [
        {
            **about,
            "model": model,
            "state": said.state,
            "slots": said.slots,
            "slots_free": said.slots_free,
            "load_seconds": None if said.load_seconds is None else round(said.load_seconds, 1),
            "load_progress": _progress(said, load_times.get(model)),
        }
        for model, said in sorted(presence.models.items())
    ]


def _progress(said: "ModelPresence", load_seconds: float | None) -> float | None:
    """Return how far a load is: as its worker says, or, at its first load of a model, by what others measured."""
    progress = said.load_progress
    if progress is None and said.loading_since_ms is not None and load_seconds:
        passed_seconds = time.time() - said.loading_since_ms / 1000
        progress = max(0.0, min(PROGRESS_MOST, passed_seconds / load_seconds))
    return None if progress is None else round(progress, 2)
