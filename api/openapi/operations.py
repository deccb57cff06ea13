"""What the document says of each route beyond its code: words, parameters, bodies and the refusals that are its own.

Who may call a route, and what the guards refuse, is read from its guards; what it answers from its annotation.
"""

from typing import Final

import msgspec

from api.openapi import queries
from api.openapi.parts import Schema, text
from api.routes.admin import IDEMPOTENCY_HEADER, IDEMPOTENCY_KEY_CHARACTERS_MOST

KEY_CODES: Final = ("missing_api_key", "invalid_api_key", "token_expired", "key_revoked", "account_deactivated")
BODY_CODES: Final = (
    "invalid_json",
    "invalid_value",
    "missing_required_parameter",
    "unsupported_parameter",
    "request_too_large",
    "unsupported_media_type",
)
QUERY_CODES: Final = ("invalid_value", "unsupported_parameter")
STORE_CODES: Final = ("dependency_unavailable", "internal_error")
BACKEND_CODES: Final = (
    "model_loading",
    "model_unavailable",
    "queue_full",
    "worker_lost",
    "engine_error",
    "request_quarantined",
    "first_token_timeout",
    "stream_timeout",
)
COMPLETION_CODES: Final = (
    *KEY_CODES,
    "csrf_failed",
    "scope_missing",
    "model_not_allowed",
    *BODY_CODES,
    "context_length_exceeded",
    "insufficient_credits",
    "model_not_found",
    "request_cancelled",
    "idempotency_key_reused",
    "idempotency_in_progress",
    "rate_limit_exceeded",
    "concurrency_limit_exceeded",
    *BACKEND_CODES,
    *STORE_CODES,
)
# How a request that was begun before may have ended.
ENDED_CODES: Final = (
    "not_found",
    "invalid_value",
    "unsupported_parameter",
    "context_length_exceeded",
    "request_cancelled",
    *BACKEND_CODES,
)

TAGS: Final = {
    "Completions": "Run a model. Nothing else than the base URL, the key and the model differs from OpenAI's API.",
    "Models": "What can be run, and how it does. Needs no credentials.",
    "Keys": "API keys of the account.",
    "Credits": "What the account has, and what moved.",
    "Usage": "What each request used and cost.",
    "Sessions": "People who log in; this page works with their cookie.",
    "Admin": "For operators only; to everybody else these routes do not exist.",
    "Health": "For whoever runs this server.",
}


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What we say of an operation. `codes`: refusals of its own; `body`: name of a component schema.

    `answers`: names of component schemas where the annotation does not say, of the route and of its legacy twin.
    `takes_nothing`: its body is empty or an empty object. `strict`: it refuses unknown query parameters.
    """

    tag: str
    summary: str
    codes: tuple[str, ...] = ()
    parameters: tuple[Schema, ...] = ()
    body: str = ""
    body_needed: bool = True
    takes_nothing: bool = False
    strict: bool = True
    sets_cookies: bool = False
    answers: tuple[str, ...] = ()


def _header(name: str, description: str, schema: Schema, *, required: bool) -> Schema:
    return {"name": name, "in": "header", "description": description, "required": required, "schema": schema}


_IDEMPOTENCY: Final = _header(
    IDEMPOTENCY_HEADER,
    "Your own name for this deposit: sent twice, it is made once.",
    text(least=1, most=IDEMPOTENCY_KEY_CHARACTERS_MOST, pattern="^[ -~]+$"),
    required=True,
)
_SIGNATURE: Final = _header("Stripe-Signature", "Stripe's signature of the body.", text(), required=True)
WAIT: Final = _header(
    "Inferbase-Wait",
    "How many seconds the request may wait for a worker that has the model ready.",
    {"type": "integer", "minimum": 0, "maximum": 600},
    required=False,
)

ATTACH: Final = _header(
    IDEMPOTENCY_HEADER,
    "Your own name for this request, kept for a day: sent twice, it runs and is charged once, and the second answer is "
    "that of the first. Such a request goes on when you leave.",
    text(least=1, most=IDEMPOTENCY_KEY_CHARACTERS_MOST, pattern="^[ -~]+$"),
    required=False,
)

RESUME: Final = _header(
    "Inferbase-Resume",
    "`1`: the request goes on when you leave, and the events of its stream carry ids, from which to go on reading.",
    {"type": "string"},
    required=False,
)
_SEQ: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
BEHIND: Final = (
    {"name": "after", "in": "query", "description": "The id of the last event you have; it goes before the header.",
     "required": False, "schema": _SEQ},
    _header("Last-Event-ID", "The id of the last event you have.", _SEQ, required=False),
)  # fmt: skip
STREAM_CODES: Final = (*KEY_CODES, "scope_missing", *ENDED_CODES, *STORE_CODES)

# Path parameters by the name that the document gives them.
PATHS: Final[dict[str, Schema]] = {
    "model": text(
        "The id of a model; a slash in it may be sent as it is or as %2F.", least=1, examples=["inferbase/demo"]
    ),
    "key_id": text("The id of a key.", least=1, examples=["key_06h17us2c1o7d9kdj1jvph0js8"]),
    "request_id": text("The id of a completion.", least=1, examples=["chatcmpl-06h17uscbhopnbot07d7atf4kg"]),
    "account_id": text("The id of an account.", least=1, examples=["acct_06h17us2c1o7d9kdj1jvph0js8"]),
}

WORDS: Final[dict[str, Words]] = {
    "get_models": Words(tag="Models", summary="List models", strict=False),
    "get_model": Words(tag="Models", summary="Look up a model", codes=("model_not_found",), strict=False),
    "get_model_health": Words(
        tag="Models", summary="Ask whether a model is warm", codes=("model_not_found",), strict=False
    ),
    "get_answer": Words(
        tag="Completions",
        summary="Look up a finished answer",
        codes=(*ENDED_CODES, "request_running"),
        answers=("ChatCompletion", "TextCompletion"),
        strict=False,
    ),
    "cancel_answer": Words(
        tag="Completions",
        summary="Cancel a request",
        codes=("not_found",),
        answers=("CancellationBody", "CancellationBody"),
        strict=False,
    ),
    "create_key": Words(
        tag="Keys",
        summary="Make a key",
        codes=("scope_missing", "model_not_allowed"),
        body="KeyRequest",
        body_needed=False,
    ),
    "get_keys": Words(tag="Keys", summary="List keys", parameters=queries.PAGE),
    "get_one_key": Words(tag="Keys", summary="Look up a key", codes=("not_found",)),
    "revoke_key": Words(tag="Keys", summary="Revoke a key", codes=("not_found",)),
    "get_credits": Words(tag="Credits", summary="Look up the balance", codes=("not_found",)),
    "get_transactions": Words(tag="Credits", summary="List transactions", parameters=queries.TRANSACTIONS),
    "get_usage": Words(tag="Usage", summary="List usage", parameters=queries.USAGE),
    "get_summary": Words(
        tag="Usage", summary="Sum up usage", codes=("missing_required_parameter",), parameters=queries.SUMMARY
    ),
    "get_one_receipt": Words(tag="Usage", summary="Look up a receipt", codes=("not_found",)),
    "register": Words(
        tag="Sessions",
        summary="Register",
        codes=("csrf_failed", "registration_closed", "account_exists", "rate_limit_exceeded", "not_found"),
        body="RegisterRequest",
        sets_cookies=True,
    ),
    "login": Words(
        tag="Sessions",
        summary="Log in",
        codes=("csrf_failed", "invalid_credentials", "account_deactivated", "rate_limit_exceeded", "not_found"),
        body="LoginRequest",
        sets_cookies=True,
    ),
    "refresh": Words(
        tag="Sessions", summary="Carry the session on", codes=("not_found",), takes_nothing=True, sets_cookies=True
    ),
    "get_me": Words(tag="Sessions", summary="Say who is logged in", codes=("not_found",)),
    "logout": Words(tag="Sessions", summary="Log out", codes=("not_found",), takes_nothing=True, sets_cookies=True),
    "get_accounts": Words(tag="Admin", summary="List accounts", parameters=queries.ACCOUNTS),
    "get_account": Words(tag="Admin", summary="Look up an account"),
    "deactivate": Words(tag="Admin", summary="Deactivate an account", takes_nothing=True),
    "activate": Words(tag="Admin", summary="Activate an account", takes_nothing=True),
    "put_weight": Words(tag="Admin", summary="Change an account's share of a busy queue", body="WeightRequest"),
    "create_deposit": Words(
        tag="Admin",
        summary="Deposit credits",
        codes=("idempotency_key_reused", "transfer_exists"),
        parameters=(_IDEMPOTENCY,),
        body="DepositRequest",
    ),
    "get_catalogue": Words(tag="Admin", summary="List models and prices"),
    "get_catalogue_model": Words(tag="Admin", summary="Look up a model and its prices", codes=("model_not_found",)),
    "put_catalogue_model": Words(
        tag="Admin",
        summary="Add or change a model",
        codes=("model_not_found",),
        body="CatalogueModelRequest",
    ),
    "delete_catalogue_model": Words(tag="Admin", summary="Take a model out", codes=("model_not_found",)),
    "receive_stripe_event": Words(
        tag="Admin",
        summary="Take an event of Stripe",
        codes=("invalid_value", "not_found", "request_too_large", "transfer_exists"),
        parameters=(_SIGNATURE,),
        body="StripeEvent",
        strict=False,
    ),
    "get_live": Words(tag="Health", summary="Is the process alive?", strict=False),
    "get_ready": Words(tag="Health", summary="Should requests come here?", strict=False),
}


def path_parameter(name: str) -> Schema:
    """Return the OpenAPI parameter of a part of a path."""
    bare = {key: value for key, value in PATHS[name].items() if key != "description"}
    return {"name": name, "in": "path", "required": True, "description": PATHS[name]["description"], "schema": bare}
