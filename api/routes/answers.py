"""Answers that were begun before: read on as a stream, read whole, or cancelled. Only their owner finds them.

    GET  /chat/completions/{id}/stream?after=SEQ   what is behind SEQ, then what comes (also by Last-Event-ID)
    GET  /chat/completions/{id}                    the finished answer
    POST /chat/completions/{id}/cancel             stop it

On any node, as long as the log is kept: 15 minutes after the end. `/completions/{id}…` is the same for legacy ones.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from api.client import Client
from api.dependencies import KeyRequest, identify, require_key
from api.errors import ending_error, internal_error
from api.exchange import exchange_of
from api.node import Node
from api.parameters import Parameters
from api.respond import respond
from api.routes.chat import refuse
from api.scopes import check_scope, require_scope
from shared import ids
from shared.channel import read_log, read_progress
from shared.database import requests
from shared.database.api_keys import Principal
from shared.database.requests import PastRun
from shared.errors import Conflict, InvalidRequest, NotFound, Refusal
from shared.openai.fold import fold_for
from shared.openai.request import CompletionRequest
from shared.wire import PLAIN_CHAT, Sampling, Task

SEQ_MOST: Final = 2**31 - 1
PATHS: Final = ("/chat/completions", "/completions")
_encode: Final = msgspec.json.Encoder().encode


async def stream_again(node: Node, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Stream an answer from behind a seq on; speaks ASGI itself, as new completions do."""
    client = Client(exchange_of(scope), send, slow_reader_seconds=node.settings.api.slow_reader_seconds)
    headers = dict(scope["headers"])
    try:
        if scope["method"] != "GET":  # type: ignore[typeddict-item]
            raise Refusal("Only GET is allowed here.", code="method_not_allowed")
        principal = await identify(node, scope, headers)
        check_scope(principal, "completions")
        after = _after(scope, headers)
        run = await _find(node, principal, scope, request_id)
        status, tip = await read_progress(node.redis, run.model, run.request_id)
        if status is None:
            raise _gone(run)
        if status == "ended" and after > tip:
            raise InvalidRequest(f"The answer ended with the id {tip}, before {after}.", param="after")
        with client:
            answer = node.dispatcher.read_again(run, key_id=principal.key_id)
            await respond(node, client, answer, _as_request(run, stream=True), after=after)
    except Exception as error:  # the HTTP edge: whatever went wrong, the client gets our error shape
        refusal = error if isinstance(error, Refusal) else internal_error(error)
        await refuse(refusal, scope, receive, send, unread=False)


@get([f"{path}/{{request_id:str}}" for path in PATHS], guards=[require_key, require_scope("completions")])
async def get_answer(
    request: KeyRequest, request_id: FromPath[str], node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[bytes]:
    """Return a finished answer as the client that did not stream would have got it."""
    run = await _find(node, principal, request.scope, request_id)
    chunks = await read_log(node.redis, run.model, run.request_id)
    if not chunks and (run.closed or (await read_progress(node.redis, run.model, run.request_id))[0] is None):
        raise _gone(run)
    end = chunks[-1].end if chunks else None
    if end is None:
        raise Conflict(
            f"The request {run.request_id} is still running: stream it, or ask again later.", code="request_running"
        )
    if end.status != "completed":
        raise ending_error(end, run.request_id)
    fold = fold_for(_as_request(run, choices=1 + max(chunk.choice for chunk in chunks)))
    fold.add(chunks)
    body = _encode(fold.body(run.request_id, run.reserved_ms // 1000, run.model, end.usage))
    return Response(body, media_type="application/json", headers={"x-request-id": run.request_id})


@post(
    [f"{path}/{{request_id:str}}/cancel" for path in PATHS],
    guards=[require_key, require_scope("completions")],
    status_code=200,
)
async def cancel_answer(
    request: KeyRequest, request_id: FromPath[str], node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[dict[str, Any]]:
    """Cancel a request; what it made so far is charged. Nothing where it has ended."""
    run = await _find(node, principal, request.scope, request_id)
    status, _ = await read_progress(node.redis, run.model, run.request_id)
    ended = run.closed or status == "ended"
    if not ended:
        node.dispatcher.cancel(run)
    body = {"id": run.request_id, "object": "completion.cancellation", "cancelled": not ended}
    return Response(body, headers={"x-request-id": run.request_id})


async def _find(node: Node, principal: Principal, scope: Mapping[str, Any], request_id: str) -> PastRun:
    """Return the request, or the same NotFound for those of others, of the other endpoint and of nobody."""
    prefix = ids.CHAT_PREFIX if "/chat/" in scope["path"] else ids.COMPLETION_PREFIX
    run = None
    if request_id.startswith(prefix) and request_id.isascii() and request_id.isprintable():
        run = await node.ledger.query(lambda one: requests.get_run(one, principal.account_id, request_id))
    if run is None:
        raise NotFound("There is no such completion.")
    return run


def _gone(run: PastRun) -> NotFound:
    return NotFound(f"The answer of {run.request_id} is no longer kept.")


def _as_request(run: PastRun, *, choices: int = 0, stream: bool = False) -> CompletionRequest:
    """Return what is known of the request behind an answer; `choices` 0: not how many there are."""
    legacy = run.request_id.startswith(ids.COMPLETION_PREFIX)
    return CompletionRequest(
        model=run.model,
        messages=(),
        sampling=Sampling(choices=choices),
        task=Task(kind="completion", prompts=("",)) if legacy else PLAIN_CHAT,
        stream=stream,
        include_usage=True,
    )


def _after(scope: Scope, headers: dict[bytes, bytes]) -> int:
    """Return the seq that the client has: by query, else by header, else none."""
    given = Parameters(Request(scope), ("after",)).integer("after", 0, SEQ_MOST)
    if given is not None:
        return given
    text = headers.get(b"last-event-id", b"0").decode("latin-1")
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > SEQ_MOST:
        raise InvalidRequest("The header Last-Event-ID must be the id of an event.", param="last-event-id")
    return int(text)
