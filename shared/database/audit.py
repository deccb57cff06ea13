"""The auditor: every invariant of the ledger, asked of one snapshot. Called by `inferbase audit` and by the tests.

Each rule is one query whose rows (id, detail) are violations. All run in one REPEATABLE READ transaction, so they hold
at any moment, also under load; `overdue` is a violation only where the system is quiesced, since then nothing is late.
"""

from typing import Final

import msgspec

from shared.connections import Connection

OVERDUE_SECONDS: Final = 60  # past the deadline: by then the janitor has closed whatever it could

RULES: Final[dict[str, str]] = {
    "balance_is_sum_of_transfers": """
        SELECT a.id, format('balance %s, transfers sum to %s', a.balance, coalesce(t.total, 0)) AS detail
          FROM accounts a
          LEFT JOIN (SELECT account_id, sum(CASE WHEN to_account = account_id THEN amount ELSE -amount END) AS total
                       FROM transfers GROUP BY account_id) t ON t.account_id = a.id
         WHERE a.balance <> coalesce(t.total, 0)
    """,
    "balance_after_follows": """
        SELECT id, format('position %s, balance_after %s instead of %s', position, balance_after, running) AS detail
          FROM (SELECT id, position, balance_after,
                       row_number() OVER in_order AS expected_position,
                       sum(CASE WHEN to_account = account_id THEN amount ELSE -amount END) OVER in_order AS running
                  FROM transfers
                WINDOW in_order AS (PARTITION BY account_id ORDER BY position ROWS UNBOUNDED PRECEDING)) t
         WHERE balance_after <> running OR position <> expected_position
    """,
    "held_is_sum_of_open_holds": """
        SELECT a.id, format('held %s, open holds sum to %s', a.held, coalesce(r.total, 0)) AS detail
          FROM accounts a
          LEFT JOIN (SELECT account_id, sum(hold) AS total FROM open_requests JOIN requests USING (request_id)
                      GROUP BY account_id) r ON r.account_id = a.id
         WHERE a.held <> coalesce(r.total, 0)
    """,
    "never_overspent": """
        SELECT id, format('balance %s, held %s', balance, held) AS detail
          FROM accounts WHERE balance < 0 OR held < 0 OR held > balance
    """,
    "budget_counts_its_key": """
        SELECT b.key_id AS id,
               format('held %s, spent %s, allotted %s instead of %s, %s, %s', b.held, b.spent, b.allotted,
                      coalesce(o.total, 0), coalesce(u.total, 0), coalesce(c.total, 0)) AS detail
          FROM key_budgets b
          LEFT JOIN (SELECT key_id, sum(hold) AS total FROM open_requests JOIN requests USING (request_id)
                      GROUP BY key_id) o ON o.key_id = b.key_id
          LEFT JOIN (SELECT key_id, sum(cost) AS total FROM usage GROUP BY key_id) u ON u.key_id = b.key_id
          LEFT JOIN (SELECT parent_id, sum(budget) AS total FROM key_budgets GROUP BY parent_id) c
                 ON c.parent_id = b.key_id
         WHERE b.held <> coalesce(o.total, 0) OR b.spent <> coalesce(u.total, 0)
            OR b.allotted <> coalesce(c.total, 0)
    """,
    "budget_never_exceeded": """
        SELECT key_id AS id,
               format('budget %s, held %s, spent %s, allotted %s', budget, held, spent, allotted) AS detail
          FROM key_budgets WHERE held < 0 OR spent < 0 OR allotted < 0 OR held + spent + allotted > budget
    """,
    "budget_is_known_to_account": """
        SELECT b.key_id AS id, format('account %s says that it has no budgets', a.id) AS detail
          FROM key_budgets b JOIN api_keys k ON k.id = b.key_id JOIN accounts a ON a.id = k.account_id
         WHERE NOT a.has_budgets
    """,
    "closed_has_one_usage_row": """
        SELECT r.request_id AS id, format('%s usage rows', count(u.request_id)) AS detail
          FROM requests r LEFT JOIN usage u ON u.request_id = r.request_id
         WHERE NOT EXISTS (SELECT FROM open_requests o WHERE o.request_id = r.request_id)
         GROUP BY r.request_id HAVING count(u.request_id) <> 1
    """,
    "usage_has_closed_request": """
        SELECT u.request_id AS id, CASE WHEN r.request_id IS NULL THEN 'no request' ELSE 'request is open' END AS detail
          FROM usage u
          LEFT JOIN requests r ON r.request_id = u.request_id
          LEFT JOIN open_requests o ON o.request_id = u.request_id
         WHERE r.request_id IS NULL OR o.request_id IS NOT NULL
    """,
    "open_has_request": """
        SELECT request_id AS id, 'no request' AS detail
          FROM open_requests o WHERE NOT EXISTS (SELECT FROM requests r WHERE r.request_id = o.request_id)
    """,
    "cost_has_one_transfer": """
        SELECT u.request_id AS id,
               format('cost %s, %s transfers of %s in sum', u.cost, count(t.id), coalesce(sum(t.amount), 0)) AS detail
          FROM usage u
          LEFT JOIN transfers t ON t.request_id = u.request_id AND t.type = 'deduction' AND t.account_id = u.account_id
         GROUP BY u.request_id, u.cost
        HAVING count(t.id) <> CASE WHEN u.cost > 0 THEN 1 ELSE 0 END OR coalesce(sum(t.amount), 0) <> u.cost
    """,
    "deduction_has_usage": """
        SELECT t.id, format('request %s has no usage row of account %s', t.request_id, t.account_id) AS detail
          FROM transfers t
          LEFT JOIN usage u ON u.request_id = t.request_id AND u.account_id = t.account_id
         WHERE t.type = 'deduction' AND u.request_id IS NULL
    """,
    "cost_within_hold": """
        SELECT u.request_id AS id, format('cost %s, hold %s', u.cost, r.hold) AS detail
          FROM usage u JOIN requests r ON r.request_id = u.request_id WHERE u.cost > r.hold
    """,
    "cost_is_tokens_times_price": """
        SELECT id, format('%s: cost %s instead of %s', status, cost, expected) AS detail
          FROM (SELECT u.request_id AS id, u.status, u.cost,
                       CASE WHEN u.status = 'completed' OR (u.status = 'cancelled' AND u.prefill_began)
                            THEN (u.prompt_tokens - u.cached_tokens)::NUMERIC * r.prompt_price
                                 + u.cached_tokens::NUMERIC * r.cached_price
                                 + u.completion_tokens::NUMERIC * r.completion_price
                            ELSE 0 END AS expected
                  FROM usage u JOIN requests r ON r.request_id = u.request_id) c
         WHERE cost <> expected
    """,
    "book_sums_to_zero": """
        SELECT 'book' AS id, format('sums to %s', sum(balance)) AS detail FROM v_account HAVING sum(balance) <> 0
    """,
    "transfer_has_account": """
        SELECT t.id, format('account %s does not exist', t.account_id) AS detail
          FROM transfers t LEFT JOIN accounts a ON a.id = t.account_id WHERE a.id IS NULL
    """,
    "key_is_of_account": """
        SELECT r.request_id AS id, format('key %s, account %s', r.key_id, r.account_id) AS detail
          FROM requests r
          LEFT JOIN api_keys k ON k.id = r.key_id AND k.account_id = r.account_id
          LEFT JOIN sessions s ON s.id = r.key_id AND s.account_id = r.account_id
         WHERE k.id IS NULL AND s.id IS NULL
    """,
    "usage_repeats_request": """
        SELECT u.request_id AS id, format('account %s, key %s, model %s', u.account_id, u.key_id, u.model) AS detail
          FROM usage u JOIN requests r ON r.request_id = u.request_id
         WHERE (u.account_id, u.key_id, u.model) <> (r.account_id, r.key_id, r.model)
    """,
}


class Violation(msgspec.Struct, frozen=True):
    """One row that breaks a rule."""

    rule: str
    id: str
    detail: str


async def audit(connection: Connection, *, quiesced: bool) -> list[Violation]:
    """Return every violation, none if the ledger is right. The connection must not be in a transaction.

    `quiesced`: nothing has run for a minute, so a request that is open past its deadline is a violation too.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        violations = [
            Violation(rule, row["id"], row["detail"])
            for rule, query in RULES.items()
            for row in await connection.fetch(query)
        ]
        if quiesced:
            violations += await find_overdue(connection)
    return violations


async def find_overdue(connection: Connection) -> list[Violation]:
    """Return the requests open past their deadline by a minute: only a warning while the system is under load."""
    rows = await connection.fetch(
        """
        SELECT request_id AS id, format('deadline was %s', to_timestamp(deadline_ms / 1000.0)) AS detail
          FROM open_requests JOIN requests USING (request_id)
         WHERE deadline_ms < (extract(epoch FROM now()) - $1) * 1000
        """,
        OVERDUE_SECONDS,
    )
    return [Violation("overdue", row["id"], row["detail"]) for row in rows]
