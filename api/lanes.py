"""Which lane a completion waits in, and for how long.

Called by the completions route. `service_tier: "flex"` is the batch lane: served in spare slots, at the model's batch
price, for whoever can wait. Unless its client says otherwise, it waits no longer than a client would keep the
connection open: a day's wait is asked for by header.
"""

from typing import Final

from api.waiting import WaitingRoom
from shared.errors import InvalidRequest
from shared.openai.request import CompletionRequest
from shared.settings import ApiSettings
from shared.wire import Lane

WAIT_HEADER: Final = "Inferbase-Wait"
WAIT_DIGITS_MOST: Final = 6


def lane_of(request: CompletionRequest) -> Lane:
    """Return the lane of a request."""
    return "batch" if request.service_tier == "flex" else "interactive"


async def patience_seconds(
    waiting: WaitingRoom, request: CompletionRequest, wait: bytes | None, settings: ApiSettings
) -> float:
    """Return how long a request may wait for a worker; InvalidRequest for a header that is no number in its range."""
    flex = request.service_tier == "flex"
    if wait is None:
        if not request.stream:
            return settings.fold_patience_seconds
        if flex:
            return settings.patience_seconds_most
        return await waiting.patience_seconds(request.model, settings)  # comments keep it alive
    seconds_most = settings.batch_patience_seconds_most if flex else settings.patience_seconds_most
    if not wait.isdigit() or len(wait) > WAIT_DIGITS_MOST or int(wait) > seconds_most:
        raise InvalidRequest(
            f"The header {WAIT_HEADER} must be a number of seconds up to {seconds_most:g}.", param=WAIT_HEADER
        )
    return float(wait)
