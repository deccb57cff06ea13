"""The documented events are those that our renderer writes by hand."""

import msgspec

from api.openapi.events import ChatCompletionChunk
from shared.openai.render import StreamRenderer
from shared.wire import Chunk, End, Extra, TokenLogprob, ToolCallDelta, Usage

EXTRA = Extra(
    reasoning="Hm.",
    tool_calls=(ToolCallDelta(0, "call_1", "f", ""), ToolCallDelta(0, None, None, "{}")),
    logprobs=(TokenLogprob(b"a", -0.5, ((b"a", -0.5),)),),
)


def test_every_event_fits_its_documented_shape_and_says_no_more() -> None:
    renderer = StreamRenderer("chatcmpl-1", 1, "m", include_usage=True, choices=2)
    chunks = [
        Chunk(1, "chatcmpl-1", 1, 1, 0, "Hel", (1,), None),
        Chunk(1, "chatcmpl-1", 1, 2, 1, "lo", (2,), None, extra=EXTRA),
        Chunk(1, "chatcmpl-1", 1, 3, 0, "", (), "stop"),
        Chunk(1, "chatcmpl-1", 1, 4, 1, "", (), "tool_calls"),
        Chunk(1, "chatcmpl-1", 1, 5, 0, "", (), None, end=End("completed", Usage(7, 2, 3))),
    ]

    *events, done = renderer.render(chunks).decode().removesuffix("\n\n").split("\n\n")

    assert done == "data: [DONE]"
    assert len(events) >= 8
    for event in events:
        sent = msgspec.json.decode(event.removeprefix("data: "))
        assert msgspec.to_builtins(msgspec.convert(sent, ChatCompletionChunk)) == sent
