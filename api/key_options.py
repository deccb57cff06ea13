"""The body of POST /keys: what a new key may do, never more than the key that asks for it.

What is not given, or null, is as much as the asking key has. A field we do not know is 400.
"""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from api.parameters import SECONDS_MOST, one_of
from shared.database.api_keys import ALLOWED_MODELS_MOST, SCOPES, Principal
from shared.errors import InvalidRequest, PermissionDenied
from shared.openai import fields
from shared.pricing import format_credits, parse_credits
from shared.settings import ApiSettings

NAME_CHARACTERS_MOST: Final = 100
DEFAULT_NAME: Final = "API key"
LIMIT_MOST: Final = 1_000_000_000

_AMOUNT: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_FIELDS: Final = ("name", "expires_at", "scopes", "allowed_models", "limits", "budget")
_LIMITS: Final = ("requests_per_minute", "tokens_per_minute", "concurrency")


class KeyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key may do, as it is stored. `budget`: nanocredits."""

    name: str
    expires_at: datetime | None
    scopes: tuple[str, ...]
    allowed_models: tuple[str, ...]
    rpm: int
    tpm: int
    concurrency: int
    budget: int | None


def key_options(
    given: dict[str, Any], asking: Principal, *, models: Collection[str], defaults: ApiSettings, now: datetime
) -> KeyOptions:
    """Return the options of a decoded body; `models` exist, `defaults` is what a key has that names no limits.

    Raises InvalidRequest, and PermissionDenied for a scope or a model that the asking key lacks.
    """
    if asking.session:  # a person who logged in speaks for the whole account: their session's bounds are no key's
        asking = msgspec.structs.replace(asking, expires_at=None, key_concurrency=0)
    _check_known(given, _FIELDS)
    given = {name: value for name, value in given.items() if value is not None}
    limits = fields.object_("limits", given.get("limits", {}))
    _check_known(limits, _LIMITS, "limits.")
    return KeyOptions(
        name=_name(given.get("name", DEFAULT_NAME)),
        expires_at=_expires_at(given.get("expires_at"), asking.expires_at, now),
        scopes=_scopes(given.get("scopes"), asking),
        allowed_models=_models(given.get("allowed_models"), asking, models),
        rpm=_limit("requests_per_minute", limits, asking.rpm, asking.rpm or defaults.key_rpm),
        tpm=_limit("tokens_per_minute", limits, asking.tpm, asking.tpm),
        concurrency=_limit(
            "concurrency", limits, asking.key_concurrency, asking.key_concurrency or defaults.key_concurrency
        ),
        budget=_budget(given.get("budget"), asking),
    )


def _check_known(given: Collection[str], known: Collection[str], prefix: str = "") -> None:
    for field in given:
        if field not in known:
            shown = prefix + ascii(field[:64])[1:-1]
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", code="unsupported_parameter", param=shown)


def _name(value: Any) -> str:
    name: str = fields.text(1, NAME_CHARACTERS_MOST)("name", value)
    if not name.isprintable():
        raise fields.invalid("name", "a string without control characters")
    return name


def _expires_at(value: Any, most: datetime | None, now: datetime) -> datetime | None:
    if value is None:
        return most
    if type(value) is not int or not now.timestamp() < value <= SECONDS_MOST:
        raise fields.invalid("expires_at", "a moment in the future in Unix seconds")
    moment = datetime.fromtimestamp(value, UTC)
    if most is not None and moment > most:
        raise fields.invalid("expires_at", f"at most {int(most.timestamp())}, when the key that asks expires")
    return moment


def _scopes(value: Any, asking: Principal) -> tuple[str, ...]:
    if value is None:
        return tuple(scope for scope in SCOPES if scope in asking.scopes)
    scopes = _strings("scopes", value, most=len(SCOPES))
    if not scopes:
        raise fields.invalid("scopes", "at least one scope")
    for scope in scopes:
        if scope not in SCOPES:
            raise one_of("scopes", SCOPES)
        if scope not in asking.scopes:
            raise PermissionDenied(
                f"The API key that asks lacks the scope '{scope}' itself.", code="scope_missing", param="scopes"
            )
    return scopes


def _models(value: Any, asking: Principal, models: Collection[str]) -> tuple[str, ...]:
    given = () if value is None else _strings("allowed_models", value, most=ALLOWED_MODELS_MOST)
    for model in given:
        if model not in models:
            shown = ascii(model[:64])[1:-1]
            raise fields.invalid("allowed_models", f"ids that GET /models lists; there is no '{shown}'")
        if asking.allowed_models and model not in asking.allowed_models:
            raise PermissionDenied(
                f"The API key that asks may not use the model '{model}' itself.",
                code="model_not_allowed",
                param="allowed_models",
            )
    return given or asking.allowed_models


def _strings(name: str, value: Any, *, most: int) -> tuple[str, ...]:
    items = fields.array(name, value)
    if len(items) > most:
        raise fields.invalid(name, f"an array of at most {most} strings")
    for item in items:
        if type(item) is not str:
            raise fields.invalid(name, f"an array of strings, not of {fields.kind_of(item)}")
    if len(set(items)) < len(items):
        raise fields.invalid(name, "an array without repeats")
    return tuple(items)


def _limit(name: str, given: dict[str, Any], most: int, default: int) -> int:
    """Return one limit. `most`: that of the asking key; 0: it has none, so the new key may have none, too."""
    value = given.get(name)
    if value is None:
        return default
    limit: int = fields.integer(0, LIMIT_MOST)(f"limits.{name}", value)
    if most and not 0 < limit <= most:
        raise fields.invalid(f"limits.{name}", f"at least 1 and at most {most}, the limit of the key that asks")
    return limit


def _budget(value: Any, asking: Principal) -> int | None:
    if value is None:
        if asking.budget is not None:
            raise fields.invalid("budget", "a part of the budget of the key that asks, since that has one")
        return None
    amount = fields.text(1, 20)("budget", value)
    budget = parse_credits(amount) if _AMOUNT.fullmatch(amount) else 0
    if budget == 0:
        raise fields.invalid(
            "budget", 'a decimal string of more than 0 credits with at most 9 decimals, such as "12.5"'
        )
    if asking.budget is not None and budget > asking.budget:
        raise fields.invalid("budget", f"at most {format_credits(asking.budget)}, the budget of the key that asks")
    return budget
