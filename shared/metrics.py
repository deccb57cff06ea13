"""Every metric of the product, so that names, units and labels are read in one place. Names end in a unit.

Counters of repairs (orphans, janitor closes, dead letters) are what a test of a fault asserts.
"""

from typing import Final

from prometheus_client import Counter, Gauge

RESERVATIONS: Final = Counter(
    "inferbase_reservations", "Reservations decided by this node, by verdict.", ["verdict"], unit="requests"
)
RELEASED: Final = Counter(
    "inferbase_released", "Reservations that were given back without a run, by reason.", ["code"], unit="requests"
)
OUTBOX_DROPPED: Final = Counter(
    "inferbase_outbox_dropped", "Releases and witnesses lost because the database was down too long.", unit="rows"
)
SETTLED: Final = Counter("inferbase_settled", "Settlement records read, by verdict.", ["verdict"], unit="records")
DEAD_LETTERS: Final = Counter(
    "inferbase_dead_letters", "Settlement records that could not be settled, by reason.", ["reason"], unit="records"
)
SETTLEMENT_BACKLOG: Final = Gauge("inferbase_settlement_backlog", "Settlement records not yet settled.", unit="records")
SETTLEMENT_LAG: Final = Gauge("inferbase_settlement_lag", "Age of the oldest unsettled record.", unit="seconds")
JANITOR_CLOSED: Final = Counter(
    "inferbase_janitor_closed", "Requests that nobody else closed, by the evidence used.", ["evidence"], unit="requests"
)
JANITOR_SKIPPED: Final = Counter(
    "inferbase_janitor_skipped", "Sweeps that closed nothing because they could not be sure.", ["reason"], unit="sweeps"
)
