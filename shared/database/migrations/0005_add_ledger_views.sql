-- The ledger as auditors and operators read it, in timestamptz and with the system accounts beside the customers:
-- their balances are sums of transfers, so the balances of v_account sum to zero.

CREATE VIEW v_transfer AS
SELECT id, account_id, from_account, to_account, type, amount,
       CASE WHEN to_account = account_id THEN amount ELSE -amount END AS signed_amount,
       balance_after, position, request_id, description, created_at
  FROM transfers;

CREATE VIEW v_account AS
SELECT id, id AS account_id, 'customer' AS kind, email, balance, held, balance - held AS available, concurrency, active,
       created_at
  FROM accounts
UNION ALL
SELECT s.id, s.id, 'system', NULL,
       coalesce((SELECT sum(amount) FROM transfers WHERE to_account = s.id), 0)::BIGINT
           - coalesce((SELECT sum(amount) FROM transfers WHERE from_account = s.id), 0)::BIGINT,
       0, NULL, 0, TRUE, NULL
  FROM (VALUES ('deposits'), ('revenue')) AS s (id);

CREATE VIEW v_request AS
SELECT r.request_id AS id, r.request_id, r.account_id, r.key_id, r.model, r.stream, r.lane, r.resumable,
       CASE WHEN o.request_id IS NULL THEN 'closed' ELSE 'open' END AS state, u.status, r.hold,
       CASE WHEN o.request_id IS NULL THEN 0 ELSE r.hold END AS held, u.cost,
       r.prompt_price, r.cached_price, r.completion_price,
       r.prompt_bound, r.max_tokens, to_timestamp(r.reserved_ms / 1000.0) AS reserved_at,
       to_timestamp(r.queue_deadline_ms / 1000.0) AS queue_deadline, to_timestamp(r.deadline_ms / 1000.0) AS deadline,
       u.created_at AS closed_at, r.delivered_tokens, r.delivered_seq, r.prompt_tokens AS witnessed_prompt_tokens,
       r.ended, r.idempotency_key
  FROM requests r
  LEFT JOIN open_requests o ON o.request_id = r.request_id
  LEFT JOIN usage u ON u.request_id = r.request_id;

CREATE VIEW v_usage AS
SELECT id, request_id, account_id, key_id, model, status, code, finish_reason, stream, prompt_tokens, cached_tokens,
       completion_tokens, prompt_tokens::BIGINT + completion_tokens AS total_tokens, cost, prefill_began, attempts,
       queue_ms,
       ttft_ms, latency_ms, created_at
  FROM usage;
