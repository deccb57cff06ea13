"""How long a settlement worker gathers records for its next transaction."""

from shared.settings import SettlementSettings
from workers.settlement.worker import BUSY_RECORDS, gather_seconds

SETTINGS = SettlementSettings(settle_most=64, settle_gather_ms=10, settle_gather_busy_ms=80)


def test_few_records_are_followed_soon() -> None:
    assert gather_seconds(SETTINGS, 1) == gather_seconds(SETTINGS, BUSY_RECORDS - 1) == 0.01


def test_many_records_are_gathered_for_longer() -> None:
    assert gather_seconds(SETTINGS, BUSY_RECORDS) == 0.08


def test_after_a_full_batch_nothing_is_waited_for() -> None:
    assert gather_seconds(SETTINGS, 64) == 0.0
