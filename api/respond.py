"""One answer to one client: its headers, how it is relayed and ended, and the canonical line that is left of it.

Used by every route that gives an answer out, new or taken up again.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from api.client import Client
from api.errors import http_error, internal_error
from api.node import Node
from api.rate_limits import quota_headers
from api.sse import error as error_as_event
from api.stream import Relay
from shared import log
from shared.answer import Answer
from shared.errors import DependencyUnavailable, Refusal
from shared.openai.request import CompletionRequest

IGNORED_NAMES_MOST: Final = 32
IGNORED_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
GOODBYE_SECONDS: Final = 0.5

logger = log.get_logger("completion")


async def respond(
    node: Node, client: Client, answer: Answer, request: CompletionRequest, *, after: int | None = None
) -> None:
    """Relay `answer` and let go of it; nothing that is awaited here may be needed for tidying up.

    `after`: events carry ids, and the client has those up to this seq.
    """
    relay = Relay(answer, client, node.settings.api, _headers(answer, request), waiting=node.waiting)
    code: str | None = "client_left"
    try:
        if request.stream:
            await relay.stream(request, after=after)
        else:
            await relay.fold(request)
        code = None if answer.end is None else answer.end.code
    except Exception as error:
        refusal = error if isinstance(error, Refusal) else internal_error(error)
        refusal.request_id, code = answer.request_id, refusal.code
        refusal.quotas = answer.quotas
        answer.fail(refusal.code)
        if not client.started or not request.stream:
            raise refusal from None
        await client.write(error_as_event(refusal), more=False)
    except asyncio.CancelledError:
        if not client.gone:
            answer.fail("dependency_unavailable")
            await _say_stopping(client, request, answer.request_id)
        raise
    finally:
        answer.close()
        _tell(answer, request, relay, code)


async def _say_stopping(client: Client, request: CompletionRequest, request_id: str) -> None:
    """End a response honestly whose time to finish is over, since this process stops."""
    stopping = DependencyUnavailable("This server is stopping: retry.", retry_after_seconds=1, request_id=request_id)
    with suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            if not client.started:
                answer = http_error(stopping)
                await client.answer(answer.status, encoded(answer.headers), answer.body)
            elif request.stream:
                await client.write(error_as_event(stopping), more=False)


def _tell(answer: Answer, request: CompletionRequest, relay: Relay, code: str | None) -> None:
    """Write the canonical line of a completion."""
    logger.info(
        "completion",
        request_id=answer.request_id,
        account_id=answer.job.account_id,
        model=answer.model,
        stream=request.stream,
        code=code,
        tokens=relay.tokens,
    )


def _headers(answer: Answer, request: CompletionRequest) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", answer.request_id.encode())]
    if answer.quotas is not None:
        headers += [(name.encode(), value.encode()) for name, value in quota_headers(answer.quotas).items()]
    if request.ignored:
        names = [name for name in request.ignored if IGNORED_NAME.fullmatch(name)]
        headers.append((b"x-inferbase-ignored", ", ".join(names[:IGNORED_NAMES_MOST]).encode()))
    return headers


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI takes them."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]
