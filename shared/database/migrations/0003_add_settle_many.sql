-- Closes many requests in one statement: cost by the table of endings from the row's own price snapshot, hold given
-- back, usage written, transfer written. First writer wins: a row that is closed, foreign, or dearer than its hold is
-- untouched.
-- The caller sends no request id twice in one call.

CREATE FUNCTION cost_of(
    status TEXT, prefill_began BOOLEAN, prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
    prompt_price BIGINT, cached_price BIGINT, completion_price BIGINT
) RETURNS BIGINT IMMUTABLE LANGUAGE sql AS $$
    SELECT CASE WHEN status = 'completed' OR (status = 'cancelled' AND prefill_began)
        THEN (prompt_tokens - cached_tokens) * prompt_price + cached_tokens * cached_price
             + completion_tokens * completion_price
        ELSE 0 END
$$;

-- What follows the dash of a request id: shared by its usage row and its charge, so neither can exist twice.
CREATE FUNCTION id_suffix(request_id TEXT) RETURNS TEXT IMMUTABLE LANGUAGE sql AS $$
    SELECT substr(request_id, strpos(request_id, '-') + 1)
$$;

CREATE FUNCTION settle_many(
    request_ids TEXT[], account_ids TEXT[], models TEXT[], statuses TEXT[], codes TEXT[], finish_reasons TEXT[],
    prompt_tokens INTEGER[], cached_tokens INTEGER[], completion_tokens INTEGER[], prefills_began BOOLEAN[],
    attempts INTEGER[], queue_ms BIGINT[], ttft_ms BIGINT[], latency_ms BIGINT[],
    OUT verdicts TEXT[]  -- NULL: every row settled
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    settled_positions BIGINT[];
BEGIN
    PERFORM FROM accounts WHERE id = ANY (account_ids) ORDER BY id FOR NO KEY UPDATE;
    WITH finish AS MATERIALIZED (
        SELECT * FROM unnest(request_ids, account_ids, models, statuses, codes, finish_reasons, prompt_tokens,
                             cached_tokens, completion_tokens, prefills_began, attempts, queue_ms, ttft_ms, latency_ms)
            WITH ORDINALITY AS u (request_id, account_id, model, status, code, finish_reason, prompt_tokens,
                                  cached_tokens, completion_tokens, prefill_began, attempts, queue_ms, ttft_ms,
                                  latency_ms, position)
    ), closed AS (
        DELETE FROM open_requests USING finish JOIN requests ON requests.request_id = finish.request_id
         WHERE open_requests.request_id = finish.request_id
           AND requests.account_id = finish.account_id AND requests.model = finish.model
           AND cost_of(finish.status, finish.prefill_began, finish.prompt_tokens, finish.cached_tokens,
                       finish.completion_tokens, requests.prompt_price, requests.cached_price,
                       requests.completion_price) <= requests.hold
        RETURNING finish.*, requests.key_id, requests.stream, requests.hold,
                  cost_of(finish.status, finish.prefill_began, finish.prompt_tokens, finish.cached_tokens,
                          finish.completion_tokens, requests.prompt_price, requests.cached_price,
                          requests.completion_price) AS cost
    ), used AS (
        INSERT INTO usage (id, request_id, account_id, key_id, model, status, code, finish_reason, stream,
                           prompt_tokens, cached_tokens, completion_tokens, cost, prefill_began, attempts, queue_ms,
                           ttft_ms, latency_ms)
        SELECT 'usage_' || id_suffix(request_id), request_id, account_id, key_id, model, status, code, finish_reason,
               stream, prompt_tokens, cached_tokens, completion_tokens, cost, prefill_began, attempts, queue_ms,
               ttft_ms, latency_ms
          FROM closed
    ), paid AS (
        UPDATE accounts SET balance = balance - total.cost, held = held - total.hold,
                            transfer_count = transfer_count + total.charges
          FROM (SELECT account_id, sum(cost) AS cost, sum(hold) AS hold, count(*) FILTER (WHERE cost > 0) AS charges
                  FROM closed GROUP BY account_id) total
         WHERE accounts.id = total.account_id AND total.hold > 0
        RETURNING accounts.id, accounts.balance + total.cost AS balance_before,
                  accounts.transfer_count - total.charges AS position_before
    ), charged AS (
        INSERT INTO transfers (id, account_id, from_account, to_account, type, amount, balance_after, position,
                               request_id, description)
        SELECT 'txn_' || id_suffix(closed.request_id), closed.account_id, closed.account_id, 'revenue', 'deduction',
               closed.cost, paid.balance_before - sum(closed.cost) OVER in_order,
               paid.position_before + row_number() OVER in_order, closed.request_id, closed.model
          FROM closed JOIN paid ON paid.id = closed.account_id
         WHERE closed.cost > 0
        WINDOW in_order AS (PARTITION BY closed.account_id ORDER BY closed.position ROWS UNBOUNDED PRECEDING)
    )
    SELECT array_agg(position) INTO settled_positions FROM closed;
    IF coalesce(cardinality(settled_positions), 0) < cardinality(request_ids) THEN
        SELECT array_agg(CASE
                   WHEN u.position = ANY (settled_positions) THEN 'settled'
                   WHEN r.request_id IS NULL THEN 'unknown'
                   WHEN r.account_id <> u.account_id OR r.model <> u.model THEN 'mismatch'
                   WHEN o.request_id IS NULL THEN 'already'
                   ELSE 'too_costly' END ORDER BY u.position)
          INTO verdicts
          FROM unnest(request_ids, account_ids, models) WITH ORDINALITY AS u (request_id, account_id, model, position)
          LEFT JOIN requests r ON r.request_id = u.request_id
          LEFT JOIN open_requests o ON o.request_id = u.request_id;
    END IF;
END
$$;
