"""One streamed completion through the openai SDK, as a user would send it, and what it cost."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from compose import http
from compose.chosen_model import DEMO_ID, SIMULATOR_ID
from compose.errors import StartFailed
from compose.provision import Provisioned
from compose.stopping import Stopping
from compose.terminal import say, write

if TYPE_CHECKING:
    from openai.types import CompletionUsage

ANSWER_SECONDS: Final = 120.0
SETTLE_SECONDS: Final = 15.0
MAX_TOKENS: Final = 96

_PROMPTS: Final = {
    DEMO_ID: "What is Inferbase?",
    SIMULATOR_ID: "Say exactly: Hello. Every token of this line came through the queue.",
}


def run(stopping: Stopping, *, port: int, base_url: str, known: Provisioned) -> None:
    """Show a completion as it comes, then usage, charge and balance. Raises StartFailed if any of it is wrong."""
    prompt = _PROMPTS.get(known.model, "Say hello in one short sentence.")
    say(f"\nSelf-check through the openai SDK: {prompt!r}\n")
    key = known.credentials.api_key
    request_id, usage = stopping.run(lambda: _complete(base_url, key, known.model, prompt))
    charge = stopping.run(lambda: _charge(port, key, request_id, lambda: stopping.requested))
    balance = stopping.run(lambda: http.get(port, "/api/v1/inference/credits", api_key=key))
    say(f"\n\n  Usage     {usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens")
    say(f"  Charge    {charge} credits for {request_id}")
    say(f"  Balance   {balance['balance']} credits")


def _complete(base_url: str, api_key: str, model: str, prompt: str) -> "tuple[str, CompletionUsage]":
    import openai

    usage, request_id = None, ""
    try:
        with (
            openai.OpenAI(api_key=api_key, base_url=base_url, timeout=ANSWER_SECONDS, max_retries=0) as client,
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=MAX_TOKENS,
                temperature=0.0,
            ) as stream,
        ):
            write("  > ")
            for chunk in stream:
                request_id, usage = chunk.id, chunk.usage or usage
                for choice in chunk.choices:
                    write((choice.delta.content or "").replace("\n", "\n  > "))
    except openai.OpenAIError as error:
        raise StartFailed(f"the self-check failed: {error}") from error
    if usage is None:
        raise StartFailed("the self-check failed: the stream ended without usage")
    return request_id, usage


def _charge(port: int, api_key: str, request_id: str, stopped: Callable[[], bool]) -> str:
    """Return what the request cost, once it is settled."""
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until and not stopped():
        try:
            answer: Any = http.get(port, "/api/v1/inference/credits/transactions?limit=20", api_key=api_key)
        except http.HttpFailed as error:
            raise StartFailed(f"the self-check failed: transactions answered {error}") from error
        for transaction in answer["data"]:
            if transaction["request_id"] == request_id:
                return str(transaction["amount"]).removeprefix("-")
        time.sleep(0.05)
    raise StartFailed(f"the self-check failed: {request_id} was not settled within {SETTLE_SECONDS:.0f} s")
