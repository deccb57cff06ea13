"""POST /chat/completions, /completions and /embeddings: the routes that speak ASGI themselves.

A full framework handler costs four times as much per request, and cannot hold back the status line. Authentication,
errors and shapes are the same functions as everywhere.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from litestar import asgi
from litestar.types import Receive, Scope, Send

from api.body import ClientLeft, check_json, linger, read_body, worth_stopping
from api.client import Client
from api.dependencies import identify
from api.errors import HttpError, http_error, internal_error
from api.exchange import Exchange, exchange_of
from api.idempotency import idempotency_of
from api.lanes import lane_of, patience_seconds
from api.node import Node
from api.rate_limits import quota_headers
from api.scopes import check_model
from api.sse import error as error_as_event
from api.stream import Relay
from shared import log
from shared.answer import Answer
from shared.database.api_keys import Principal
from shared.errors import DependencyUnavailable, Refusal
from shared.openai.decode import decode_chat
from shared.openai.decode_prompts import decode_completion, decode_embedding
from shared.openai.request import CompletionRequest
from shared.settings import ApiSettings
from shared.submission import Submission, limits_of

Decode = Callable[[bytes], CompletionRequest]

DECODERS: Final[dict[str, Decode]] = {
    "/chat/completions": decode_chat,
    "/completions": decode_completion,
    "/embeddings": decode_embedding,
}
LOOP_BODY_BYTES_MOST: Final = 64 * 1024  # larger ones are decoded in a thread
IGNORED_NAMES_MOST: Final = 32
IGNORED_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
GOODBYE_SECONDS: Final = 0.5

logger = log.get_logger("chat")


@asgi(list(DECODERS), copy_scope=False)
async def completions(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request that came by the framework's router (`api/app.py` says which do not)."""
    decode = next(decode for path, decode in DECODERS.items() if scope["path"].rstrip("/").endswith(path))
    await complete(scope["litestar_app"].state.node, decode, scope, receive, send)


async def complete(node: Node, decode: Decode, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, streamed or whole."""
    exchange = exchange_of(scope)
    client = Client(exchange, send, slow_reader_seconds=node.settings.api.slow_reader_seconds)
    headers = dict(scope["headers"])
    unread = worth_stopping(headers)
    try:
        if scope["method"] != "POST":  # type: ignore[typeddict-item]
            raise Refusal("Only POST is allowed here.", code="method_not_allowed")
        principal = await identify(node, scope, headers)
        body = await _read(node.settings.api, headers, exchange, receive)
        unread = False
        request = await _decode(node, decode, body)
        submission = await _submission(node, principal, request, headers)
        with client:
            await _complete(node, client, submission, request)
    except ClientLeft:
        return
    except Exception as error:  # the HTTP edge: whatever went wrong, the client gets our error shape
        refusal = error if isinstance(error, Refusal) else internal_error(error)
        await _refuse(refusal, scope, receive, send, unread=unread)


async def _read(settings: ApiSettings, headers: dict[bytes, bytes], exchange: Exchange, receive: Receive) -> bytes:
    check_json(headers)
    most, seconds_most = settings.body_bytes_most, settings.body_seconds_most
    return await read_body(headers, exchange, receive, most=most, seconds_most=seconds_most)


async def _decode(node: Node, decode: Decode, body: bytes) -> CompletionRequest:
    if len(body) <= LOOP_BODY_BYTES_MOST:
        return decode(body)
    return await asyncio.get_running_loop().run_in_executor(node.decoders, decode, body)


async def _submission(
    node: Node, principal: Principal, request: CompletionRequest, headers: dict[bytes, bytes]
) -> Submission:
    model = await node.catalogue.find(request.model)
    check_model(principal, model.id)
    lane, wait = lane_of(request), headers.get(b"inferbase-wait")
    return Submission(
        account_id=principal.account_id,
        key_id=principal.key_id,
        model=model,
        messages=request.messages,
        sampling=request.sampling,
        task=request.task,
        stream=request.stream,
        patience_seconds=await patience_seconds(node.waiting, request, wait, node.settings.api),
        limits=limits_of(principal),
        lane=lane,
        resumable=lane == "batch",
        weight=principal.weight,
        idempotency=idempotency_of(headers, request),
    )


async def _complete(node: Node, client: Client, submission: Submission, request: CompletionRequest) -> None:
    """Submit and relay; nothing that is awaited here may be needed for tidying up."""
    answer = await node.dispatcher.submit(submission)
    relay = Relay(answer, client, node.settings.api, _headers(answer, request), waiting=node.waiting)
    code: str | None = "client_left"
    try:
        if request.stream:
            await relay.stream(request)
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
                await client.answer(answer.status, _encoded(answer), answer.body)
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


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send, *, unread: bool) -> None:
    answer = http_error(refusal, allow="POST" if refusal.code == "method_not_allowed" else "")
    headers = _encoded(answer)
    if unread:  # a body may still be on its way: read on for a moment, then close
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": unread})
    if unread:
        await linger(receive, send)


def _encoded(answer: HttpError) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in answer.headers.items()]


def _headers(answer: Answer, request: CompletionRequest) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", answer.request_id.encode())]
    if answer.quotas is not None:
        headers += [(name.encode(), value.encode()) for name, value in quota_headers(answer.quotas).items()]
    if request.ignored:
        names = [name for name in request.ignored if IGNORED_NAME.fullmatch(name)]
        headers.append((b"x-inferbase-ignored", ", ".join(names[:IGNORED_NAMES_MOST]).encode()))
    return headers
