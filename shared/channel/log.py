"""Reading a request's log in one go: for a successor worker, the janitor and whoever resumes.

`read_log` is the whole of it; the reader of live streams (`refill.py`) uses the pieces below.
"""

from typing import Final

from shared import keys
from shared.connections import Redis, redis_errors
from shared.wire import Chunk, decode_chunk

PAGE_CHUNKS: Final = 1024

LogEntries = list[tuple[bytes, dict[bytes, bytes]]]  # as XRANGE answers


def parse_entries(entries: LogEntries) -> list[Chunk]:
    """Return the chunks of log entries."""
    return [decode_chunk(fields[b"c"]) for _, fields in entries]


async def read_progress(redis: Redis, model: str, request_id: str) -> tuple[str | None, int]:
    """Return the status of a request, None where it is forgotten, and the seq of its last chunk.

    Raises DependencyUnavailable.
    """
    with redis_errors():
        async with redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(keys.state(model, request_id), "status")
            pipeline.xlen(keys.log(model, request_id))
            status, seq = await pipeline.execute()
    return (None if status is None else status.decode()), seq


async def read_log(redis: Redis, model: str, request_id: str, *, after: int = 0) -> list[Chunk]:
    """Return every chunk behind seq `after`, in order; [] where the log is empty or gone.

    Raises DependencyUnavailable.
    """
    name = keys.log(model, request_id)
    chunks: list[Chunk] = []
    while True:
        with redis_errors():
            entries: LogEntries = await redis.xrange(name, min=f"{after + 1}-0", count=PAGE_CHUNKS)
        page = parse_entries(entries)
        chunks += page
        if len(page) < PAGE_CHUNKS:
            return chunks
        after = page[-1].seq
