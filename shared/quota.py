"""What is left of a limit: told with every answer that a limit applies to, and with every refusal by one.

Made by `shared/limits.py`, shown as headers by `api/rate_limits.py`.
"""

import msgspec


class Quota(msgspec.Struct, frozen=True):
    """One limit per minute: how many may still come at once, and when all of them may again."""

    limit: int
    remaining: int
    reset_ms: int


class Quotas(msgspec.Struct, frozen=True):
    """Of several holders the one with the least left; None: there is no such limit."""

    requests: Quota | None = None
    tokens: Quota | None = None
