"""The header `Idempotency-Key`: which request of the account this one is, however often it is sent.

Called by the completions routes. Whether it is streamed is not part of what is asked for: an answer that was begun one
way may be read the other way.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from shared.errors import InvalidRequest
from shared.openai.request import CompletionRequest
from shared.submission import Idempotency

HEADER: Final = "Idempotency-Key"
BODY_HASH_BYTES: Final = 32

_KEY: Final = re.compile(rb"[\x20-\x7e]{1,255}")
_encode: Final = msgspec.msgpack.Encoder().encode


def idempotency_of(headers: Mapping[bytes, bytes], request: CompletionRequest) -> Idempotency | None:
    """Return what the header names, None where it is absent; InvalidRequest where it cannot be a key."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"The header {HEADER} must be 1 to 255 printable ASCII characters.", param=HEADER)
    return Idempotency(key.decode("ascii"), _hash(request))


def _hash(request: CompletionRequest) -> bytes:
    tier = "flex" if request.service_tier == "flex" else None
    asked = msgspec.structs.replace(request, stream=False, include_usage=False, ignored=(), service_tier=tier)
    return hashlib.blake2b(_encode(asked), digest_size=BODY_HASH_BYTES).digest()
