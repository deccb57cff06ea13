"""The headers that tell what is left of a key's limits, in OpenAI's form. Only limits that exist are told.

Source: platform.openai.com/docs/guides/rate-limits, "Rate limits in headers".
"""

from shared.quota import Quotas

_MINUTE_MS = 60_000


def quota_headers(quotas: Quotas) -> dict[str, str]:
    """Return x-ratelimit-{limit,remaining,reset}-{requests,tokens}."""
    headers = {}
    for name, quota in (("requests", quotas.requests), ("tokens", quotas.tokens)):
        if quota is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(quota.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(quota.reset_ms)
    return headers


def duration(milliseconds: int) -> str:
    """Return a duration as `20ms`, `1s`, `8.64s` or `6m0s`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, _MINUTE_MS)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{seconds}" if minutes else seconds
