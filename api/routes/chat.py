"""POST /chat/completions, /completions and /embeddings: the routes that speak ASGI themselves.

A full framework handler costs four times as much per request, and cannot hold back the status line. Authentication,
errors and shapes are the same functions as everywhere.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from litestar import asgi
from litestar.types import Receive, Scope, Send

from api.body import ClientLeft, check_json, linger, read_body, worth_stopping
from api.client import Client
from api.dependencies import identify
from api.errors import http_error, internal_error
from api.exchange import Exchange, exchange_of
from api.idempotency import idempotency_of
from api.lanes import lane_of, patience_seconds
from api.node import Node
from api.respond import encoded, respond
from api.scopes import check_model
from shared.database.api_keys import Principal
from shared.errors import Refusal
from shared.openai.decode import decode_chat
from shared.openai.decode_prompts import decode_completion, decode_embedding
from shared.openai.request import CompletionRequest
from shared.settings import ApiSettings
from shared.submission import Submission, limits_of, prompt_bounds

Decode = Callable[[bytes], CompletionRequest]

DECODERS: Final[dict[str, Decode]] = {
    "/chat/completions": decode_chat,
    "/completions": decode_completion,
    "/embeddings": decode_embedding,
}
LOOP_BODY_BYTES_MOST: Final = 64 * 1024  # larger ones are decoded in a thread
RESUME_HEADER: Final = b"inferbase-resume"


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
        resume = headers.get(RESUME_HEADER) == b"1"
        if resume:
            submission = msgspec.structs.replace(submission, resumable=True)
        if len(body) > LOOP_BODY_BYTES_MOST:
            submission = await _bounded(node, submission)
        with client:
            answer = await node.dispatcher.submit(submission)
            await respond(node, client, answer, request, after=0 if resume and request.stream else None)
    except ClientLeft:
        return
    except Exception as error:  # the HTTP edge: whatever went wrong, the client gets our error shape
        refusal = error if isinstance(error, Refusal) else internal_error(error)
        await refuse(refusal, scope, receive, send, unread=unread)


async def _read(settings: ApiSettings, headers: dict[bytes, bytes], exchange: Exchange, receive: Receive) -> bytes:
    check_json(headers)
    most, seconds_most = settings.body_bytes_most, settings.body_seconds_most
    return await read_body(headers, exchange, receive, most=most, seconds_most=seconds_most)


async def _decode(node: Node, decode: Decode, body: bytes) -> CompletionRequest:
    if len(body) <= LOOP_BODY_BYTES_MOST:
        return decode(body)
    return await asyncio.get_running_loop().run_in_executor(node.decoders, decode, body)


async def _bounded(node: Node, submission: Submission) -> Submission:
    """Return `submission` with the bounds of its prompts, which take long where a long text is not ASCII."""
    bound = partial(prompt_bounds, submission.model, submission.messages, submission.task)
    bounds = await asyncio.get_running_loop().run_in_executor(node.decoders, bound)
    return msgspec.structs.replace(submission, bounds=bounds)


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


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send, *, unread: bool) -> None:
    """Answer with an error, and with `unread` get rid of a body that is still on its way."""
    answer = http_error(refusal, allow="POST" if refusal.code == "method_not_allowed" else "")
    headers = encoded(answer.headers)
    if unread:  # a body may still be on its way: read on for a moment, then close
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": unread})
    if unread:
        await linger(receive, send)
