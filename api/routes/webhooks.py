"""POST /webhooks/stripe: payments become deposits, each once."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.di import NamedDependency

from api.node import Node
from shared import log
from shared.database.deposits import deposit_payment
from shared.errors import InvalidRequest, NotFound

EVENT_BYTES_MOST: Final = 256 * 1024  # Stripe's own are some KiB

logger = log.get_logger("webhooks")


@post("/webhooks/stripe", status_code=200, request_max_body_size=EVENT_BYTES_MOST)
async def receive_stripe_event(
    request: Request[Any, Any, Any], node: NamedDependency[Node]
) -> Response[dict[str, str]]:
    """Take one event: `deposited`, `repeated` where it was told before, `ignored` where it is no deposit."""
    if node.payments is None:
        raise NotFound("There is no webhook here: this server has no INFERBASE_STRIPE_WEBHOOK_SECRET.")
    signature = dict(request.scope["headers"]).get(b"stripe-signature", b"")
    payment = node.payments.read(await request.body(), signature)
    if payment is None:
        return Response({"status": "ignored"})
    try:
        row = await node.ledger.query(
            lambda connection: deposit_payment(
                connection,
                event_id=payment.event_id,
                reference=payment.reference,
                account_id=payment.account_id,
                amount=payment.amount,
                description=f"Payment {payment.reference}",
            )
        )
    except NotFound as error:  # shown to the operator by Stripe, which tries again for days
        raise InvalidRequest(error.message) from None
    status = "repeated" if row is None else "deposited"
    logger.info("payment", event_id=payment.event_id, account_id=payment.account_id, status=status)
    return Response({"status": status})
