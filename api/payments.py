"""Payments that Stripe tells of: what is verified by its own library, and what of an event is a deposit.

Both a paid checkout and its payment intent may come as events of their own. They name the same payment, so whichever
comes second finds the first one's deposit.
"""

from typing import Any, Final

import msgspec

from shared.errors import InvalidRequest, SettingsInvalid

NANOCREDITS_PER_CENT: Final = 10_000_000
CENTS_MOST: Final = 99_999_999_999  # far beyond what one payment can be
ID_CHARACTERS_MOST: Final = 255
TOLERANCE_SECONDS: Final = 300

_CHECKOUTS: Final = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
_INTENT: Final = "payment_intent.succeeded"


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """One payment to an account. `reference` names it in whichever event it comes; amount in nanocredits."""

    event_id: str
    reference: str
    account_id: str
    amount: int


class _Object(msgspec.Struct, frozen=True):
    """What is read of a checkout session or a payment intent. Amounts are cents."""

    id: str
    metadata: dict[str, str] | None = None
    currency: str | None = None
    amount_total: int | None = None  # of a checkout
    amount_received: int | None = None  # of an intent
    payment_status: str = "paid"
    payment_intent: str | None = None


class _Data(msgspec.Struct, frozen=True):
    object: msgspec.Raw


class _Event(msgspec.Struct, frozen=True):
    id: str
    type: str
    data: _Data


class Payments:
    """Reads the events of one Stripe endpoint."""

    def __init__(self, secret: str) -> None:
        if not secret.startswith("whsec_"):
            raise SettingsInvalid("INFERBASE_STRIPE_WEBHOOK_SECRET must be the signing secret of the endpoint: whsec_…")
        self._secret = secret
        self._stripe = _import_stripe()

    def read(self, body: bytes, signature: bytes) -> Payment | None:
        """Return the payment that an event tells of; None for what is none, or none of ours.

        Raises InvalidRequest for what Stripe did not sign just now, and for a payment that cannot become a deposit:
        Stripe shows its operator that, and tries again.
        """
        self._verify(body, signature)
        try:
            event = msgspec.json.decode(body, type=_Event)
            if event.type not in (*_CHECKOUTS, _INTENT):
                return None
            return _payment(event, msgspec.json.decode(event.data.object, type=_Object))
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"The event cannot be understood: {error}.") from None

    def _verify(self, body: bytes, signature: bytes) -> None:
        try:
            self._stripe.Webhook.construct_event(body, signature.decode("ascii"), self._secret, TOLERANCE_SECONDS)
        except (ValueError, AttributeError, self._stripe.StripeError):  # AttributeError: signed, and no object
            raise InvalidRequest("The Stripe-Signature does not fit the body, or is too old.") from None


def open_payments(secret: str) -> Payments | None:
    """Return the payments of an endpoint's secret; None where there is no secret. Raises SettingsInvalid."""
    return Payments(secret) if secret else None


def _payment(event: _Event, paid: _Object) -> Payment | None:
    account_id = (paid.metadata or {}).get("account_id")
    if not account_id or paid.payment_status != "paid":
        return None  # somebody else's, or a checkout whose payment is yet to come
    cents = paid.amount_received if event.type == _INTENT else paid.amount_total
    if paid.currency != "usd" or cents is None or not 0 < cents <= CENTS_MOST:
        raise InvalidRequest("A deposit is an amount of at least one cent, in usd.")
    if (
        not (account_id.isascii() and account_id.isprintable())
        or len(event.id) > ID_CHARACTERS_MOST
        or "\0" in event.id
    ):
        raise InvalidRequest("The event names no account.")
    reference = paid.id if event.type == _INTENT else paid.payment_intent or event.id
    return Payment(event_id=event.id, reference=reference, account_id=account_id, amount=cents * NANOCREDITS_PER_CENT)


def _import_stripe() -> Any:
    """Import it only where it is used: it takes half a second and 27 MB."""
    import stripe

    return stripe
