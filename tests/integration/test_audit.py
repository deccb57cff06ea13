"""The auditor finds each kind of violation, planted with the table's own guards switched off, and nothing else."""

import pytest

from shared.connections import Database
from shared.database.audit import RULES, audit
from shared.database.requests import reserve_many
from shared.database.settlements import settle_many
from shared.database.transfers import deposit
from tests.integration.ledger_factories import make_customer, make_finish, make_reserve

# rule -> what is planted; $R is a settled request of account $A (cost 40), $O an open one
PLANTED = {
    "balance_is_sum_of_transfers": "UPDATE accounts SET balance = balance + 1 WHERE id = '$A'",
    "balance_after_follows": "UPDATE transfers SET balance_after = 1 WHERE type = 'deposit' AND account_id = '$A'",
    "held_is_sum_of_open_holds": "UPDATE accounts SET held = held - 1 WHERE id = '$A'",
    "never_overspent": "UPDATE accounts SET held = balance + 1 WHERE id = '$A'",
    "budget_counts_its_key": "UPDATE key_budgets SET held = held + 1",
    "budget_never_exceeded": "UPDATE key_budgets SET budget = 100",
    "budget_is_known_to_account": "UPDATE accounts SET has_budgets = FALSE",
    "closed_has_one_usage_row": "DELETE FROM usage WHERE request_id = '$R'",
    "usage_has_closed_request": "INSERT INTO open_requests VALUES (0, '$R')",
    "open_has_request": "INSERT INTO open_requests VALUES (0, 'chatcmpl-other')",
    "cost_has_one_transfer": "UPDATE transfers SET amount = amount - 1 WHERE request_id = '$R'",
    "deduction_has_usage": "UPDATE transfers SET request_id = 'chatcmpl-other' WHERE request_id = '$R'",
    "cost_within_hold": "UPDATE requests SET hold = 39 WHERE request_id = '$R'",
    "cost_is_tokens_times_price": "UPDATE usage SET completion_tokens = 2 WHERE request_id = '$R'",
    "book_sums_to_zero": "UPDATE accounts SET balance = balance - 1 WHERE id = '$A'",
    "transfer_has_account": "UPDATE transfers SET account_id = 'acct_x', from_account = 'acct_x' "
    "WHERE request_id = '$R'",
    "key_is_of_account": "UPDATE requests SET key_id = 'key_other' WHERE request_id = '$O'",
    "usage_repeats_request": "UPDATE usage SET model = 'org/other' WHERE request_id = '$R'",
}
MORE = {
    "budget_counts_its_key": [
        "UPDATE key_budgets SET spent = spent - 1",
        "UPDATE key_budgets SET allotted = 1",
        "DELETE FROM open_requests WHERE request_id = '$O'",
    ],
    "budget_never_exceeded": ["UPDATE key_budgets SET held = -1"],
    "cost_has_one_transfer": [
        "DELETE FROM transfers WHERE request_id = '$R'",
        "INSERT INTO transfers SELECT amount, 920, 3, now(), 'txn_twin', account_id, from_account, to_account, type, "
        "request_id, '' FROM transfers WHERE request_id = '$R'",
        "UPDATE usage SET cost = 0 WHERE request_id = '$R'",
    ],
    "closed_has_one_usage_row": ["DELETE FROM open_requests WHERE request_id = '$O'"],
    "usage_has_closed_request": ["UPDATE usage SET request_id = 'chatcmpl-other' WHERE request_id = '$R'"],
    "cost_is_tokens_times_price": [
        "UPDATE usage SET status = 'failed' WHERE request_id = '$R'",
        "UPDATE usage SET status = 'cancelled', prefill_began = FALSE WHERE request_id = '$R'",
        "UPDATE requests SET completion_price = 21 WHERE request_id = '$R'",
    ],
    "never_overspent": ["UPDATE accounts SET balance = -1 WHERE id = '$A'"],
    "balance_after_follows": ["UPDATE transfers SET position = 5 WHERE request_id = '$R'"],
}
CASES = [(rule, statement) for rule, first in PLANTED.items() for statement in (first, *MORE.get(rule, []))]


async def plant(database: Database, statement: str) -> None:
    customer = await make_customer(database, credits=1_000, budget=500)
    rows = [make_reserve(customer), make_reserve(customer)]
    await reserve_many(database, rows)
    await settle_many(database, [make_finish(rows[0])])
    await database.execute("ALTER TABLE accounts DROP CONSTRAINT accounts_never_overspent")
    await database.execute(
        "ALTER TABLE key_budgets DROP CONSTRAINT key_budgets_never_exceeded, DROP CONSTRAINT key_budgets_held_check"
    )
    for table in ("transfers", "usage"):
        await database.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    named = statement.replace("$A", customer.id).replace("$R", rows[0].request_id).replace("$O", rows[1].request_id)
    assert not (await database.execute(named)).endswith(" 0")


async def rules_broken(database: Database, *, quiesced: bool = False) -> set[str]:
    async with database.acquire() as connection:
        return {violation.rule for violation in await audit(connection, quiesced=quiesced)}


def test_every_rule_is_planted() -> None:
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize(("rule", "statement"), CASES, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(CASES)])
async def test_a_planted_violation_is_found(database: Database, rule: str, statement: str) -> None:
    await plant(database, statement)

    assert rule in await rules_broken(database)


async def test_a_used_ledger_is_clean(database: Database) -> None:
    customer = await make_customer(database, credits=1_000)
    rows = [make_reserve(customer) for _ in range(3)]
    await reserve_many(database, rows)
    await settle_many(database, [make_finish(row) for row in rows[1:]])
    await deposit(database, transfer_id="txn_again", account_id=customer.id, amount=5, description="")

    assert await rules_broken(database) == set()


async def test_an_overdue_request_is_a_violation_only_when_quiesced(database: Database) -> None:
    row = make_reserve(await make_customer(database), age_seconds=990 + 61)
    await reserve_many(database, [row])

    assert await rules_broken(database) == set()
    assert await rules_broken(database, quiesced=True) == {"overdue"}


async def test_a_violation_names_its_row_and_what_is_wrong(database: Database) -> None:
    customer = await make_customer(database, credits=7)
    await database.execute("UPDATE accounts SET balance = 9")

    async with database.acquire() as connection:
        violations = await audit(connection, quiesced=True)

    assert [(v.rule, v.id, v.detail) for v in violations] == [
        ("balance_is_sum_of_transfers", customer.id, "balance 9, transfers sum to 7"),
        ("book_sums_to_zero", "book", "sums to 2"),
    ]
