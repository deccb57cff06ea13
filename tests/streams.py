"""A client that keeps what it received: for tests that compare texts, pauses and endings."""

import time
from dataclasses import dataclass, field

import httpx
import msgspec


@dataclass
class Received:
    """Everything one client saw of one stream."""

    status: int = 0
    request_id: str = ""
    text: str = ""
    finish_reason: str | None = None
    done: bool = False
    error: dict[str, object] | None = None
    usage: dict[str, int] | None = None
    pauses: list[float] = field(default_factory=list)  # seconds between events

    @property
    def complete(self) -> bool:
        return self.done and self.error is None


async def stream(
    base_url: str,
    key: str,
    *,
    content: str = "tell me a story",
    model: str = "sim/plain",
    leave_after: int | None = None,
    received: Received | None = None,
    headers: dict[str, str] | None = None,
    **fields: object,
) -> Received:
    """Send one streamed completion and read it to its end, or leave after so many events."""
    got = received if received is not None else Received()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    last, events = time.monotonic(), 0
    async with (
        httpx.AsyncClient(timeout=120, headers={"Authorization": f"Bearer {key}", **(headers or {})}) as client,
        client.stream("POST", base_url + "/chat/completions", json=body) as answer,
    ):
        got.status = answer.status_code
        got.request_id = answer.headers.get("x-request-id", "")
        if got.status != 200:
            got.error = msgspec.json.decode(await answer.aread())["error"]
            return got
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            now = time.monotonic()
            got.pauses.append(now - last)
            last, events = now, events + 1
            _take(got, line[6:])
            if leave_after is not None and events >= leave_after:
                return got
    return got


def _take(got: Received, data: str) -> None:
    if data == "[DONE]":
        got.done = True
        return
    event = msgspec.json.decode(data)
    if "error" in event:
        got.error = event["error"]
        return
    got.usage = event.get("usage") or got.usage
    for choice in event["choices"]:
        assert got.finish_reason is None, "a delta after the finish chunk"
        got.text += choice["delta"].get("content") or ""
        got.finish_reason = choice["finish_reason"]
