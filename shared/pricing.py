"""Prices, holds and costs: integer arithmetic on nanocredits, no I/O.

1 credit = 1 USD = 10^9 nanocredits. A price is given in credits per million tokens with at most three decimals,
so that one token costs a whole number of nanocredits. DESIGN section 5 says how each ending is charged.
"""

from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

NANOCREDITS_PER_CREDIT: Final = 1_000_000_000
_NANOCREDITS_PER_TOKEN_AT_ONE_CREDIT_PER_MILLION: Final = 1_000
AMOUNT_MOST_NANOCREDITS: Final = 10**18


class Prices(msgspec.Struct, frozen=True):
    """Nanocredits per token, as in force when a request was admitted; cached <= prompt."""

    prompt: int
    cached: int
    completion: int


def parse_price(text: str) -> int:
    """Return nanocredits per token for a price in credits per million tokens.

    Raises ValueError if `text` is no decimal, negative, or has more than three decimals.
    """
    nanocredits = _decimal(text) * _NANOCREDITS_PER_TOKEN_AT_ONE_CREDIT_PER_MILLION
    if nanocredits != nanocredits.to_integral_value():
        raise ValueError("a price has at most three decimals")
    return _bounded(int(nanocredits))


def parse_credits(text: str) -> int:
    """Return nanocredits for a decimal number of credits; ValueError if it has more than nine decimals."""
    nanocredits = _decimal(text) * NANOCREDITS_PER_CREDIT
    if nanocredits != nanocredits.to_integral_value():
        raise ValueError("an amount has at most nine decimals")
    return _bounded(int(nanocredits))


def format_credits(nanocredits: int) -> str:
    """Return the decimal string of an amount, always with nine decimals: `12345678901` is `"12.345678901"`."""
    sign = "-" if nanocredits < 0 else ""
    whole, fraction = divmod(abs(nanocredits), NANOCREDITS_PER_CREDIT)
    return f"{sign}{whole}.{fraction:09d}"


def format_price(nanocredits_per_token: int) -> str:
    """Return credits per million tokens as a decimal string with three decimals."""
    whole, fraction = divmod(nanocredits_per_token, _NANOCREDITS_PER_TOKEN_AT_ONE_CREDIT_PER_MILLION)
    return f"{whole}.{fraction:03d}"


def cost(prices: Prices, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
    """Return what an answer costs; cached prompt tokens (<= prompt_tokens) at the cached price."""
    assert 0 <= cached_tokens <= prompt_tokens
    uncached = prompt_tokens - cached_tokens
    return uncached * prices.prompt + cached_tokens * prices.cached + completion_tokens * prices.completion


def discounted(prices: Prices, percent: int) -> Prices:
    """Return `prices` less `percent` [0, 100], each rounded up to whole nanocredits per token."""
    assert 0 <= percent <= 100
    prompt, cached, completion = (
        -(-price * (100 - percent) // 100) for price in (prices.prompt, prices.cached, prices.completion)
    )
    return Prices(prompt=prompt, cached=cached, completion=completion)


def hold_for(prices: Prices, *, prompt_bound: int, max_tokens: int, choices: int, context: int) -> int:
    """Return the most that an answer can cost: no split of `choices * context` tokens within the bounds costs more.

    The prompt is counted once, however many choices share it.
    """
    room = choices * context
    prompt_most = min(prompt_bound, context)
    completion_most = choices * max_tokens
    if prices.completion >= prices.prompt:
        completion = min(completion_most, room)
        return completion * prices.completion + min(prompt_most, room - completion) * prices.prompt
    return prompt_most * prices.prompt + min(completion_most, room - prompt_most) * prices.completion


def affordable_completion_tokens(prices: Prices, *, hold: int, prompt_tokens: int) -> int:
    """Return how many completion tokens a hold still pays for after an uncached prompt; negative if not even that."""
    left = hold - prompt_tokens * prices.prompt
    if prices.completion == 0:
        return 2**31 - 1 if left >= 0 else -1
    return left // prices.completion


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite() or value < 0:
        raise ValueError(f"{text!r} is not a finite number of at least 0")
    return value


def _bounded(amount: int) -> int:
    if amount > AMOUNT_MOST_NANOCREDITS:
        raise ValueError("the amount is too large")
    return amount
