"""What the small bodies of keys, sessions and operators' routes may be, as JSON schemas.

The words of `api/key_options.py`, `api/routes/{sessions,admin,admin_models}.py`. Here an unknown field is refused.
"""

from typing import Final

from api.key_options import LIMIT_MOST, NAME_CHARACTERS_MOST
from api.openapi.parts import Schema, array, choice, integer, nullable, object_, optional, text
from api.parameters import SECONDS_MOST
from api.passwords import PASSWORD_CHARACTERS_LEAST, PASSWORD_CHARACTERS_MOST
from api.routes.admin import DESCRIPTION_CHARACTERS_MOST
from api.routes.admin_models import CONTEXT_TOKENS_MOST, OPTION_CHARACTERS_MOST, OPTIONS_MOST
from shared import emails
from shared.database.accounts import WEIGHT_MOST
from shared.database.api_keys import ALLOWED_MODELS_MOST, SCOPES

_EMAIL: Final = text("An e-mail address.", least=3, most=emails.CHARACTERS_MOST, examples=["you@example.com"])
_CREDITS: Final = text(
    "Credits, as a decimal string.", most=20, pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", examples=["25.50"]
)
_PRICE: Final = text(
    "Credits per million tokens, as a decimal string with at most 3 decimals.",
    most=32,
    pattern=r"^[0-9]+(\.[0-9]{1,3})?$",
    examples=["0.10"],
)


def account_schemas() -> dict[str, Schema]:
    """Return the component schemas of the bodies by name."""
    return {
        "KeyRequest": _key(),
        "RegisterRequest": _credentials(PASSWORD_CHARACTERS_LEAST),
        "LoginRequest": _credentials(1),
        "DepositRequest": _deposit(),
        "WeightRequest": _weight(),
        "CatalogueModelRequest": _model(),
    }


def _key() -> Schema:
    what = "0 = none; where the asking key has a limit, at least 1 and at most that."
    limits = {
        "requests_per_minute": nullable(integer(what, 0, LIMIT_MOST)),
        "tokens_per_minute": nullable(integer(what, 0, LIMIT_MOST)),
        "concurrency": nullable(integer(f"Requests at once; {what}", 0, LIMIT_MOST)),
    }
    properties = {
        "name": text("Printable characters.", least=1, most=NAME_CHARACTERS_MOST, default="API key"),
        "expires_at": integer("Unix seconds in the future.", 0, SECONDS_MOST),
        "scopes": array(
            choice("", *SCOPES),
            "What the key may do: run models, make keys, read the books.",
            least=1,
            most=len(SCOPES),
            uniqueItems=True,
        ),
        "allowed_models": array(text(), "Ids of models; none = all.", most=ALLOWED_MODELS_MOST, uniqueItems=True),
        "limits": object_(limits, closed=True),
        "budget": {**_CREDITS, "description": "What the key may spend in its life: more than 0 credits."},
    }
    return object_(
        optional(properties),
        "What is missing or null is as much as the asking key has, and of limits that it has not the server's default; "
        "more than that is refused.",
        closed=True,
    )


def _credentials(password_characters: int) -> Schema:
    password = text("", least=password_characters, most=PASSWORD_CHARACTERS_MOST, format="password")
    return object_({"email": _EMAIL, "password": password}, required=("email", "password"), closed=True)


def _weight() -> Schema:
    weight = integer("Against the weights of the other accounts that wait.", 1, WEIGHT_MOST)
    return object_({"weight": weight}, "An account's share of a busy queue.", required=("weight",), closed=True)


def _deposit() -> Schema:
    properties = {
        "amount": {**_CREDITS, "description": "More than 0 credits, as a decimal string."},
        "description": text("Shown to the customer.", least=1, most=DESCRIPTION_CHARACTERS_MOST, default="deposit"),
    }
    return object_(optional(properties, "amount"), required=("amount",), closed=True)


def _model() -> Schema:
    options = object_(
        {},
        "Options of the engine.",
        closed=False,
        additionalProperties=text(most=OPTION_CHARACTERS_MOST),
        maxProperties=OPTIONS_MOST,
        propertyNames={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    )
    properties = {
        "engine": text("Which engine runs it.", pattern="^[a-z][a-z0-9_-]{0,31}$", examples=["llamacpp"]),
        "context": integer("Tokens of prompt and answer together.", 1, CONTEXT_TOKENS_MOST),
        "prompt_price": _PRICE,
        "cached_price": {**_PRICE, "description": "Of prompt tokens that were cached; at most `prompt_price`."},
        "completion_price": _PRICE,
        "batch_discount_percent": integer("Less for `service_tier: flex`; 50 where it is not named.", 0, 100),
        "default_max_tokens": integer("Of an answer that asks for no length.", 1, CONTEXT_TOKENS_MOST),
        "options": options,
    }
    return object_(
        optional(properties),
        "A new model needs `engine`, `context`, `prompt_price` and `completion_price`; of one that is there only what "
        "is named changes.",
        closed=True,
    )
