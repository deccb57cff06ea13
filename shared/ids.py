"""Identifiers: sortable by time, opaque to users, safe in URLs, SQL, Redis names and logs.

An id is a prefix plus a UUIDv7 (RFC 9562) in lower-case base32hex without padding: 26 characters that sort by time.
The request id is the completion id, the usage, transfer and receipt reference and the `x-request-id` header.
"""

import base64
from typing import Final

import uuid_utils

CHAT_PREFIX: Final = "chatcmpl-"
COMPLETION_PREFIX: Final = "cmpl-"
EMBEDDING_PREFIX: Final = "embd-"

REQUEST_PREFIXES: Final = (CHAT_PREFIX, COMPLETION_PREFIX, EMBEDDING_PREFIX)

SUFFIX_CHARACTERS: Final = 26


def new_id(prefix: str) -> str:
    """Return `prefix` plus 26 characters, later ids sorting after earlier ones of the same process."""
    return prefix + base64.b32hexencode(uuid_utils.uuid7().bytes).rstrip(b"=").decode().lower()


def made_ms(name: str) -> int:
    """Return when an id of ours was made, Unix milliseconds; ValueError where it is none."""
    suffix = name[-SUFFIX_CHARACTERS:].upper()
    return int.from_bytes(base64.b32hexdecode(f"{suffix}======")[:6])


def new_chat_id() -> str:
    """Return the id of a chat completion."""
    return new_id(CHAT_PREFIX)


def new_completion_id() -> str:
    """Return the id of a legacy completion."""
    return new_id(COMPLETION_PREFIX)


def new_embedding_id() -> str:
    """Return the id of a request for embeddings, which the client sees in `x-request-id` alone."""
    return new_id(EMBEDDING_PREFIX)


def new_account_id() -> str:
    """Return the id of an account."""
    return new_id("acct_")


def new_key_id() -> str:
    """Return the id (not the secret) of an API key."""
    return new_id("key_")


def new_transfer_id() -> str:
    """Return the id of one movement of credits."""
    return new_id("txn_")


def new_usage_id() -> str:
    """Return the id of a usage row."""
    return new_id("usage_")


def new_owner_id() -> str:
    """Return the random half of a fence: one per start of a worker or node."""
    return new_id("own_")


def new_http_id() -> str:
    """Return the `x-request-id` of a response that serves no completion."""
    return new_id("req_")


def is_request_id(text: str) -> bool:
    """Tell whether `text` has the form of a request id of ours."""
    for prefix in REQUEST_PREFIXES:
        if text.startswith(prefix):
            suffix = text[len(prefix) :]
            return len(suffix) == SUFFIX_CHARACTERS and suffix.isascii() and suffix.isalnum()
    return False


def requests_of(reference: str) -> list[str]:
    """Return the request ids that a usage row or charge can belong to: all share what follows the prefix."""
    _, _, suffix = reference.partition("_")
    return [prefix + suffix for prefix in REQUEST_PREFIXES]
